"""A network on forward-only hardware: every convolution can be run and not differentiated, and all else is digital.

    python benchmarks/forward_only.py --data-dir DIR --out benchmarks/records/forward-only.json

A ResNet-8 on CIFAR-10 (averaged to ``--size`` pixels, ``--limit`` training images). Each convolution is a
``dz.Opaque`` with its own weights, locality in positions for its input and in output channels for its weights: 2 k^2 C
runs of a layer with C input channels a step, whatever the size of the image. Batch norm, activations and the classifier
are autograd's.

Two kinds of convolution, trained from the same weights on the same batches:

- ``ideal``: an exact convolution. Backpropagation through it is the reference;
- ``analog``: a simulated analog operator: inputs rounded to 6 bits, weights with a gain of their own each that depends
  on the weight (a compressive response) and on the cell (normal with mean 1 and deviation 1: a sixth of the cells
  answers with the wrong sign, as miswired pairs do), read noise on the output. It is trained by ``dz.Opaque`` from its
  answers, and, for comparison, by autograd through the *ideal* convolution in its place (what one does where only a
  model of the chip can be differentiated).

The ideal network is trained in float64, so that what differs is how it is trained and not how it is rounded; the
analog one in float32. Everything is evaluated with the operator that it was trained for. Test accuracy for ``--seeds``
seeds, and the worst relative difference of a step's gradient from backpropagation in float64.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import deepzero as dz
from deepzero import data
from deepzero.measure.measurement_record import environment, heading, write_record
from deepzero.measure.rounds import Spread, in_turns
from deepzero.models import cifar_resnet
from deepzero.stopwatch import Stopwatch

RANGE, NOISE = 4.0, 0.01
"""Largest input of the analog array, and standard deviation of its read noise."""
LEAST = 2 * RANGE / 63
"""Least step of a 6-bit input."""
METHODS = ("ideal, backpropagation", "ideal, Opaque", "analog, Opaque", "analog, autograd through the ideal layer")


@dataclass(frozen=True)
class Options:
    """The command line."""

    data_dir: Path
    size: int = 16
    limit: int = 5120
    width: int = 4
    epochs: int = 6
    batch: int = 128
    rate: float = 0.1
    seeds: int = 3
    threads: int = 1
    methods: tuple[str, ...] = METHODS
    out: Path | None = None


class Analog(nn.Module):
    """A convolution as an analog array computes it.

    The response of a cell saturates, ``w -> s tanh(w / s)`` with s twice the spread of the initial weights, times a
    gain of the cell's own, normal with mean 1 and deviation 1; inputs are clipped to [-4, 4] and rounded to 6 bits;
    reading adds noise.
    """

    def __init__(self, ideal: nn.Conv2d, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(ideal.weight.detach().clone())
        self._stride, self._padding = ideal.stride, ideal.padding
        generator = torch.Generator().manual_seed(seed)
        self._gain = 1 + torch.randn(ideal.weight.shape, generator=generator).to(ideal.weight)
        self._bound = 2 * float(ideal.weight.detach().std())
        self._noise = torch.Generator().manual_seed(seed + 1)

    def forward(self, x: Tensor) -> Tensor:
        """The reading of the array."""
        rounded = (x.clamp(-RANGE, RANGE) / LEAST).round() * LEAST
        answered = self._gain * self._bound * torch.tanh(self.weight / self._bound)
        y = F.conv2d(rounded, answered, stride=self._stride, padding=self._padding)
        return y + NOISE * torch.randn(y.shape, generator=self._noise, dtype=y.dtype)


class ThroughIdeal(nn.Module):
    """The analog array forward, the ideal convolution backward."""

    def __init__(self, analog: Analog) -> None:
        super().__init__()
        self.analog = analog

    def forward(self, x: Tensor) -> Tensor:
        """The array's answer, with the ideal layer's derivative."""
        analog = self.analog
        ideal = F.conv2d(x, analog.weight, stride=analog._stride, padding=analog._padding)
        with torch.no_grad():
            answer = analog(x)
        result: Tensor = ideal + (answer - ideal).detach()
        return result


def forward_only(layer: nn.Module, conv: nn.Conv2d, **options: Any) -> dz.Opaque:
    """A layer that can be run and not differentiated, with what is known of where it acts."""
    return dz.Opaque(
        layer,
        directions="coordinates",
        locality=dz.Conv(conv.kernel_size, conv.stride, conv.padding),  # type: ignore[arg-type]
        parameter_locality=dict.fromkeys(dict(layer.named_parameters()), dz.PerChannel()),
        **options,
    )


def network(options: Options, method: str, seed: int) -> nn.Module:
    """The ResNet with its convolutions replaced."""
    torch.manual_seed(seed)
    model = cifar_resnet(8, width=options.width)
    number = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Conv2d):
                continue
            number += 1
            if method == "ideal, Opaque":
                box = forward_only(child, child, stencil="forward", step_size=1.0, parameter_step_size=1.0)  # linear
                setattr(parent, name, box)
            elif method == "analog, Opaque":
                layer = Analog(child, 1000 * seed + number)
                box = forward_only(layer, child, step_size=4 * LEAST, parameter_step_size=layer._bound / 4)
                setattr(parent, name, box)
            elif method == "analog, autograd through the ideal layer":
                setattr(parent, name, ThroughIdeal(Analog(child, 1000 * seed + number)))
    return model


def deviation(options: Options) -> float:
    """Worst relative difference of the gradient from backpropagation's, in float64, over the parameters."""
    gradients = []
    x = torch.randn(16, 3, options.size, options.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(16) % 10
    for method in METHODS[:2]:
        model = network(options, method, 0).double()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        gradients.append({name.replace("module.", ""): p.grad for name, p in model.named_parameters()})
    first, second = gradients
    pairs = [(g, second[name]) for name, g in first.items()]
    return max(float((other - g).norm() / g.norm()) for g, other in pairs if g is not None and other is not None)


def trained(options: Options, splits: data.Splits, method: str, seed: int) -> dict[str, Any]:
    """Accuracy, seconds, and runs of the layers a step."""
    dtype = torch.float64 if method.startswith("ideal") else torch.float32
    model = network(options, method, seed).to(dtype)
    loader = data.BatchLoader(splits.train, batch_size=options.batch, shuffle=True, drop_last=True, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.rate, momentum=0.9, weight_decay=5e-4)
    steps = options.epochs * len(loader)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    watch = Stopwatch()
    for epoch in range(options.epochs):
        for x, y in loader.iterate(epoch):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x.to(dtype)), y))
            optimizer.step()
            rates.step()
    seconds = watch.seconds()
    boxes = [module for module in model.modules() if isinstance(module, dz.Opaque)]
    runs = [box.queries / (steps * options.batch) for box in boxes]
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in data.BatchLoader(splits.test, batch_size=500).iterate():
            right += int((model(x.to(dtype)).argmax(1) == y).sum())
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": right / len(splits.test),
        "seconds": seconds,
        "steps": steps,
        "layer_runs_per_step": sum(runs) if runs else None,
        "forwards_per_step": forwards(options, runs) if runs else None,
    }


def forwards(options: Options, runs: list[float]) -> float:
    """Runs of the convolutions in units of network forwards, by multiplications."""
    model, work = network(options, METHODS[0], 0), []

    def count(layer: nn.Conv2d, _: Any, output: Tensor) -> None:
        work.append(layer.weight.numel() * output[0, 0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.zeros(2, 3, options.size, options.size))
    return sum(w * r for w, r in zip(work, runs, strict=True)) / sum(work)


def main(options: Options) -> None:
    """Train, print, write."""
    torch.set_num_threads(options.threads)
    splits = data.load(
        "cifar10", validation=0.0, data_dir=options.data_dir, image_size=options.size, limit=options.limit
    )
    size = sum(p.numel() for p in network(options, METHODS[0], 0).parameters())
    record: dict[str, Any] = {
        **heading(environment()),
        "settings": {**asdict(options), "data_dir": "DIR", "out": None},
        "parameters": size,
        "deviation_from_backpropagation_float64": deviation(options),
        "runs": [],
    }
    print(f"{size:,} parameters; gradient agrees to {record['deviation_from_backpropagation_float64']:.1e}", flush=True)
    sides = {method: partial(trained, options, splits, method) for method in options.methods}
    for runs in in_turns(sides, options.seeds):
        record["runs"] += runs.values()
        for run in runs.values():
            cost = run["forwards_per_step"]
            cost = "" if cost is None else f", {cost:.0f} network forwards a step"
            words = f"{run['test_accuracy']:.2%} in {run['seconds']:.0f} s{cost}"
            print(f"{run['method']}, seed {run['seed']}: {words}", flush=True)
        write_record(options.out, record)
    for method in options.methods:
        found = [run["test_accuracy"] for run in record["runs"] if run["method"] == method]
        record.setdefault("test_accuracy", {})[method] = asdict(Spread.of(found))
        print(f"{method}: {statistics.mean(found):.2%} (mean of {len(found)})")
    write_record(options.out, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
