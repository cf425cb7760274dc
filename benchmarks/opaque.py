"""What a black box inside of a network costs: the overhead of a call, and a hybrid network against CGE over all of it.

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

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from sklearn.datasets import load_digits
from torch import Tensor, nn

import deepzero as dz
from deepzero.measure.rounds import Spread
from deepzero.models import DnCNN
from deepzero.opaque import OnnxModel
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.defense import DefenseConfig, DenoiserConfig
from deepzero.tasks.defense.defense_methods import finetuning
from deepzero.training import hardware, versions

BATCH = 64


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
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
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


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def overhead(options: Options, folder: Path) -> dict[str, Any]:
    """Of a forward, and of a product, over the session alone."""
    model = OnnxModel(classifier(folder / "classifier.onnx"), threads=options.threads)
    box = dz.Opaque(model, queries=options.directions, stencil="forward")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    many = x.repeat(1 + options.directions, 1, 1, 1).numpy()
    given = x.clone().requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            box(x)

    def product() -> None:
        torch.autograd.grad(box(given).square().sum(), given)

    one = x.numpy()
    sides: dict[str, Callable[[], Any]] = {
        "session, 64 rows": lambda: model(one),
        "Opaque, 64 rows": forward,
        "session, all rows of a product": lambda: model(many),
        "Opaque, a product": product,
    }
    for side in sides.values():
        side()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for pair in (list(sides)[:2], list(sides)[2:]):  # each by itself: a large call leaves a cold cache behind
        for number in range(options.rounds):
            for name in pair if number % 2 else pair[::-1]:
                found[name].append(seconds(sides[name]))
    pairs = [list(found.values())[k : k + 2] for k in (0, 2)]
    return {
        "seconds": {name: asdict(Spread.of(values)) for name, values in found.items()},
        "forward over session": statistics.median(b / a for a, b in zip(*pairs[0], strict=True)),
        "product over session": statistics.median(b / a for a, b in zip(*pairs[1], strict=True)),
    }


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
    found: dict[str, list[float]] = {"step": [], "session": []}
    for _ in range(max(3, options.rounds // 4)):
        found["step"].append(seconds(lambda: fine.source.backward(x, y)))
        found["session"].append(seconds(lambda: model(many)))
    return {
        "queries of a step": fine.queries_per_step,
        "seconds": {name: asdict(Spread.of(values)) for name, values in found.items()},
        "step over session": statistics.median(a / b for a, b in zip(*found.values(), strict=True)),
    }


class Head(nn.Module):
    """What answers for 64 features, of fixed weights: it stands for a service."""

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


def trained(method: str, seed: int, epochs: int, images: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Seconds of an epoch, queries and accuracy."""
    x, y, x_test, y_test = images
    model = hybrid(seed, queries=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    zo = dz.CGE(model, loss=F.cross_entropy)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // BATCH))
    took = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        start = time.perf_counter()
        for index in range(len(x) // BATCH):
            chosen = order[index * BATCH : (index + 1) * BATCH]
            optimizer.zero_grad()
            if method == "autograd around Opaque":
                F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            else:
                zo.backward(x[chosen], y[chosen])
            optimizer.step()
            rates.step()
        took.append(time.perf_counter() - start)
    queries = model[-1].queries
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
    return {"method": method, "seed": seed, "epoch_seconds": took, "queries": queries, "test_accuracy": accuracy}


def main(options: Options) -> None:
    """Measure, print, write."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        record: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": {**hardware(torch.device("cpu")), "versions": versions()},
            "settings": {**asdict(options), "out": None, "batch": BATCH},
            "overhead": overhead(options, Path(folder)),
            "defense": [defense_step(options, Path(folder), directions) for directions in (32, 192)],
        }
    for step in record["defense"]:
        queries, ratio = step["queries of a step"], step["step over session"]
        print(f"step of the defense with {queries} queries over session: {ratio:.3f}", flush=True)
    for key in ("forward over session", "product over session"):
        print(f"{key}: {record['overhead'][key]:.3f}", flush=True)
    found, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(found))
    x = torch.tensor(found[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    images = x[:1400], y[:1400], x[1400:], y[1400:]
    record["hybrid"] = []
    for seed in range(options.seeds):
        for method in ("autograd around Opaque", "CGE over all"):
            run = trained(method, seed, options.epochs, images)
            record["hybrid"].append(run)
            epoch = statistics.median(run["epoch_seconds"])
            print(
                f"{method}, seed {seed}: {epoch:.2f} s an epoch, {run['queries']:,} queries of the head, "
                f"test accuracy {run['test_accuracy']:.1%}",
                flush=True,
            )
    runs = record["hybrid"]
    ratios = [
        statistics.median(slow["epoch_seconds"]) / statistics.median(fast["epoch_seconds"])
        for fast, slow in zip(runs[::2], runs[1::2], strict=True)
    ]
    record["speed of an epoch, CGE over Opaque"] = asdict(Spread.of(ratios))
    print(f"an epoch is {statistics.median(ratios):.1f} times faster (median of {len(ratios)} seeds)")
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
