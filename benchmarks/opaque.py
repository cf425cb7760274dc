"""The cost of a black box inside of a network: the overhead of a call, and a hybrid network against CGE over all.

    python benchmarks/opaque.py --out benchmarks/records/opaque.json

1. **Overhead.** A classifier in ONNX Runtime, 64 images: seconds of ``session.run`` by itself, and of the same call by
   ``dz.Opaque`` under ``no_grad``, in turns; and a whole product (forward and backward with ``--directions``
   directions) against as many rows by ``session.run`` in one call. Medians of ``--rounds``.
2. **A hybrid network on digits.** A convolutional front (ours) and a head of 64 inputs and 10 outputs that only
   answers. Both methods train the front for ``--epochs`` epochs from the same weights: autograd with the head's product
   by 16 orthonormal directions, and ``dz.CGE`` over all parameters of the front, by propagation. Seconds of an epoch,
   queries of the head, and test accuracy, for ``--seeds`` seeds.
3. **A step of DeepZero's defense.** Coordinate-wise estimates of a denoiser's last layer in front of the classifier of
   the first part: seconds of a step, over those of as many images asked by ``session.run`` in one call. The features in
   front of the last layer are computed once a step, so with many coordinates a query costs little more than the
   classifier.

Leave the machine alone meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from sklearn.datasets import load_digits
from torch import Tensor, nn

import deepzero as dz
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, by_side, in_turns, ratio
from deepzero.models import DnCNN
from deepzero.opaque import OnnxModel
from deepzero.stopwatch import Stopwatch, seconds_of
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.defense import DefenseConfig, DenoiserConfig
from deepzero.tasks.defense.defense_methods import finetuning

BATCH = 64
METHODS = ("autograd around Opaque", "CGE over all")


@dataclass(frozen=True)
class Options:
    """The command line."""

    rounds: int = 30
    directions: int = 16
    epochs: int = 10
    seeds: int = 3
    threads: int = 1
    out: Path | None = None


def classifier(path: Path, width: int = 32) -> Path:
    """A convolutional classifier of 32x32 images as a model file, built node by node."""
    import onnx  # noqa: PLC0415 - optional

    helper, rng = onnx.helper, np.random.default_rng(0)
    weights, nodes, last, channels = [], [], "x", 3
    for number, stride in enumerate((1, 2, 1, 2, 1)):
        weight = (rng.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{number}"))
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
        nodes.append(helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        last, channels = f"r{number}", width
    weights.append(onnx.numpy_helper.from_array(rng.normal(size=(width, 10)).astype(np.float32), "fc"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["logits"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", kind, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", kind, ["n", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


Calls = Mapping[str, Callable[[], object]]


def seconds_in_turns(calls: Calls, rounds: int, *, swap: bool = False) -> dict[str, list[float]]:
    """Seconds of every call, round by round."""
    return by_side(in_turns({name: partial(timed, call) for name, call in calls.items()}, rounds, swap=swap))


def timed(call: Callable[[], object], _: int) -> float:
    """Seconds of a call in a round."""
    return seconds_of(call)


def spreads(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Median and extremes of every side."""
    return {name: asdict(Spread.of(values)) for name, values in found.items()}


def overhead(options: Options, folder: Path) -> dict[str, Any]:
    """Of a forward, and of a product, over the session alone."""
    model = OnnxModel(classifier(folder / "classifier.onnx"), threads=options.threads)
    box = dz.Opaque(model, queries=options.directions, stencil="forward")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    many = x.repeat(1 + options.directions, 1, 1, 1).numpy()
    watched = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            box(x)

    def product() -> None:
        torch.autograd.grad(box(watched).square().sum(), watched)

    one = x.numpy()
    forwards: Calls = {"session, 64 rows": partial(model, one), "Opaque, 64 rows": forward}
    products: Calls = {"session, all rows of a product": partial(model, many), "Opaque, a product": product}
    for call in (*forwards.values(), *products.values()):
        call()
    seconds: dict[str, list[float]] = {}
    ratios = []
    for pair in (forwards, products):  # each by itself: a large call leaves a cold cache behind
        found = seconds_in_turns(pair, options.rounds, swap=True)
        session, opaque = found.values()
        ratios.append(ratio(opaque, session).median)
        seconds |= found
    return {"seconds": spreads(seconds), "forward over session": ratios[0], "product over session": ratios[1]}


def defense_step(options: Options, folder: Path, directions: int) -> dict[str, Any]:
    """Seconds of a step of the method ``deepzero``, over those of its images by the session alone."""
    config = DefenseConfig(
        data=DataConfig(name="cifar10"),
        method="deepzero",
        denoiser=DenoiserConfig(depth=7, width=32),
        directions=directions,
        budget=10**9,
    )
    model = OnnxModel(classifier(folder / "classifier.onnx"), threads=options.threads)
    fine = finetuning(
        config, DnCNN(channels=3, depth=7, width=32), lambda x: torch.from_numpy(model(x.detach().numpy()))
    )
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(BATCH, 3, 32, 32, generator=generator), torch.arange(BATCH) % 10
    fine.source.backward(x, y)
    many = x.repeat(fine.queries_per_step, 1, 1, 1).numpy()
    calls: Calls = {"step": partial(fine.source.backward, x, y), "session": partial(model, many)}
    found = seconds_in_turns(calls, max(3, options.rounds // 4))
    return {
        "queries of a step": fine.queries_per_step,
        "seconds": spreads(found),
        "step over session": ratio(found["step"], found["session"]).median,
    }


class Head(nn.Module):
    """A network of fixed weights that answers for 64 features: it stands for a service."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.first = rng.normal(size=(64, 32)).astype(np.float32) / 8
        self.second = rng.normal(size=(32, 10)).astype(np.float32) / 3

    def forward(self, z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits."""
        return np.asarray(np.tanh(z @ self.first) @ self.second * 4)


def hybrid(seed: int, **options: Any) -> nn.Sequential:
    """A convolutional front of 8x8 images, and the head."""
    torch.manual_seed(seed)
    head = Head(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        dz.Opaque(head.forward, numpy=True, **options),
    )


def trained(method: str, epochs: int, images: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> dict[str, Any]:
    """Seconds of an epoch, queries and accuracy."""
    x, y, x_test, y_test = images
    model = hybrid(seed, queries=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    zo = dz.CGE(model, loss=F.cross_entropy)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // BATCH))
    took = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        watch = Stopwatch()
        for index in range(len(x) // BATCH):
            chosen = order[index * BATCH : (index + 1) * BATCH]
            optimizer.zero_grad()
            if method == "autograd around Opaque":
                torch.autograd.backward(F.cross_entropy(model(x[chosen]), y[chosen]))
            else:
                zo.backward(x[chosen], y[chosen])
            optimizer.step()
            rates.step()
        took.append(watch.seconds())
    box = model[-1]
    assert isinstance(box, dz.Opaque)
    queries = box.queries
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
    return {"method": method, "seed": seed, "epoch_seconds": took, "queries": queries, "test_accuracy": accuracy}


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        record: dict[str, Any] = {
            **heading(environment()),
            "settings": {**asdict(options), "out": None, "batch": BATCH},
            "overhead": overhead(options, Path(folder)),
            "defense": [defense_step(options, Path(folder), directions) for directions in (32, 192)],
        }
    for step in record["defense"]:
        queries, over = step["queries of a step"], step["step over session"]
        print(f"step of the defense with {queries} queries over session: {over:.3f}", flush=True)
    for key in ("forward over session", "product over session"):
        print(f"{key}: {record['overhead'][key]:.3f}", flush=True)
    found, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(found))
    x = torch.tensor(found[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    images = x[:1400], y[:1400], x[1400:], y[1400:]
    record["hybrid"] = []
    epochs: dict[str, list[float]] = {method: [] for method in METHODS}
    sides = {method: partial(trained, method, options.epochs, images) for method in METHODS}
    for runs in in_turns(sides, options.seeds):
        for method, run in runs.items():
            record["hybrid"].append(run)
            epochs[method].append(statistics.median(run["epoch_seconds"]))
            print(
                f"{method}, seed {run['seed']}: {epochs[method][-1]:.2f} s an epoch, {run['queries']:,} queries of the "
                f"head, test accuracy {run['test_accuracy']:.1%}",
                flush=True,
            )
    slower = ratio(epochs["CGE over all"], epochs["autograd around Opaque"])
    record["speed of an epoch, CGE over Opaque"] = asdict(slower)
    print(f"an epoch is {slower.median:.1f} times faster (median of {len(slower.rounds)} seeds)")
    write_record(options.out, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
