"""What a query and the set-up of a step cost as networks, batches and coordinate sets grow.

    python benchmarks/growth.py --out benchmarks/records/growth.json

Every axis is doubled up to ten times today's sizes, all else fixed:

- coordinates: of a dense gradient of an MLP, by its width;
- layers: of a residual MLP of width 64;
- batch: images of a small convolutional network;
- steps: estimates made by one estimator, one after another.

Measured are seconds of this thread's processor time, which depend less than the clock on what else the machine does:
of a query; of the set-up of a step (directions, base query, plan, gradient); and of the first set-up (capture, checks,
footprint) without it. A power law is fitted to each. Not superlinear means an exponent of at most 1.1 in what grows: a
query may take time in proportion to layers and batch; a first set-up in proportion to parameters times what a query of
each takes, as every parameter is checked by queries of its own: 2 in layers, for the checks alone.
Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.evaluators import StepQueries
from deepzero.graph.footprint import footprint
from deepzero.measure.measurement_record import environment, flat_heading, write_record
from deepzero.objective import Batch
from deepzero.randomness import derive_seed

LINEAR = 1.1
"""Largest exponent of what is not superlinear; what a fit of four noisy points may add to 1 is in it."""


class Residual(nn.Module):
    """A block of a residual MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.map = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The input and a map of it."""
        return x + torch.relu(self.map(self.norm(x)))


@dataclass(frozen=True)
class Point:
    """A network and a batch.

    Attributes:
        model: the network.
        batch: inputs and labels.
        size: of what grows.
        queried: coordinates of each parameter; None for all.
    """

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    size: int
    queried: int | None = 1

    def coordinates(self) -> dz.Coordinates:
        """The coordinates of an estimate."""
        shapes = {name: p.numel() for name, p in self.model.named_parameters()}
        return dz.Coordinates({n: torch.arange(min(size, self.queried or size)) for n, size in shapes.items()})


def labelled(x: Tensor) -> tuple[Tensor, Tensor]:
    """A batch with labels of ten classes."""
    return x, torch.arange(len(x)) % 10


def by_coordinates(scale: int) -> Point:
    """An MLP with ``scale`` times half a million weights, all of which are queried."""
    width = 500 * scale
    model = nn.Sequential(nn.Linear(1000, width), nn.ReLU(), nn.Linear(width, 10))
    return Point(model, labelled(torch.randn(16, 1000)), 1000 * width, None)


def by_layers(scale: int) -> Point:
    """A residual MLP of 20 blocks times ``scale``."""
    blocks = [Residual(64) for _ in range(20 * scale)]
    return Point(nn.Sequential(*blocks, nn.Linear(64, 10)), labelled(torch.randn(32, 64)), 20 * scale)


def by_batch(scale: int) -> Point:
    """A small convolutional network on 64 images times ``scale``."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 12 * 12, 10),
    )  # fmt: skip
    return Point(model, labelled(torch.randn(64 * scale, 1, 16, 16)), 64 * scale, 64)


AXES: dict[str, Callable[[int], Point]] = {"coordinates": by_coordinates, "layers": by_layers, "batch": by_batch}
BOUNDS = {
    "coordinates": {"first set-up": LINEAR, "footprint": LINEAR, "set-up": LINEAR, "query": 0.1},
    "layers": {"first set-up": 2.0, "footprint": LINEAR, "set-up": LINEAR, "query": LINEAR},
    "batch": {"first set-up": LINEAR, "footprint": LINEAR, "set-up": LINEAR, "query": LINEAR},
    "steps": {"step": 0.1},
}
"""Largest exponents that are accepted. A query of more coordinates, and a later step, cost what others cost."""


def processor_seconds(function: Callable[[], Any]) -> float:
    """Seconds of processor time that a call takes in this thread."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def estimator(point: Point) -> dz.Estimator:
    """An estimator in one thread."""
    evaluator = dz.PropagationEvaluator(workers=1)
    return dz.CGE(point.model, loss=F.cross_entropy, sparsity=point.coordinates(), evaluator=evaluator)


def set_up(zo: dz.Estimator, batch: tuple[Any, ...], part: float) -> tuple[float, float, int]:
    """Seconds of the set-up of a step, of a part of its queries, and their number."""
    start = time.thread_time()
    directions = zo.directions(*batch)
    step_size = zo.step_size
    queries = StepQueries(zo.objective, Batch(batch, {}), directions, [step_size], derive_seed(0, "growth"))
    step = zo.evaluator.prepare(queries)  # type: ignore[attr-defined]
    before = time.thread_time() - start
    stride = max(1, int(len(step.jobs) * part))
    asked = step.jobs[:: max(1, len(step.jobs) // stride)]
    seconds = processor_seconds(lambda: step.answer(asked))
    start = time.thread_time()
    step.release()
    found = step.assemble(queries, [torch.zeros(len(job), dtype=torch.float64) for job in step.jobs])
    directions.combine(found.differences[0] / queries.nominal_steps()[0], None)
    return before + time.thread_time() - start, seconds, sum(map(len, asked))


def measured(point: Point, repeats: int) -> dict[str, float]:
    """Seconds of the first set-up beyond a later one, of a footprint, of a later set-up, and of a query."""
    zo, part = estimator(point), min(1.0, 200 / max(1, point.coordinates().count / 100))
    first = set_up(zo, point.batch, part)[0]
    later = [set_up(zo, point.batch, part) for _ in range(repeats)]
    evaluator: Any = zo.evaluator
    program = evaluator.program(zo.objective, point.batch)
    values = evaluator.base_values(program, zo.objective, point.batch, 0)
    footprint(program, values, 1e-3)
    usual = statistics.median(seconds for seconds, *_ in later)
    return {
        "first set-up": first - usual,
        "footprint": processor_seconds(lambda: footprint(program, values, 1e-3)),
        "set-up": usual,
        "query": statistics.median(seconds / count for _, seconds, count in later),
    }


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the logarithm of the seconds over that of the sizes, by least squares.

    >>> round(exponent([1, 2, 4], [3.0, 6.0, 12.0]), 6)
    1.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(max(s, 1e-9)) for s in seconds]
    return statistics.linear_regression(x, y).slope


def along(axis: str, scales: Sequence[int], repeats: int) -> dict[str, Any]:
    """Seconds at every size of an axis, with their exponents."""
    torch.manual_seed(0)
    sizes, rows = [], []
    for scale in scales:
        point = AXES[axis](scale)
        sizes.append(point.size)
        rows.append(measured(point, repeats))
        print(axis, point.size, {name: f"{value:.4g}" for name, value in rows[-1].items()}, flush=True)
    return {"sizes": sizes, "seconds": rows, **fitted(axis, sizes, rows)}


def along_steps(count: int) -> dict[str, Any]:
    """Seconds of a step by its number: a later one is no slower."""
    torch.manual_seed(0)
    point = by_batch(1)
    zo = estimator(point)
    zo.backward(*point.batch)
    seconds = [processor_seconds(lambda: zo.backward(*point.batch)) for _ in range(count)]
    sizes = [count // 10, count // 4, count // 2, count]
    rows = [{"step": statistics.median(seconds[size - count // 10 : size])} for size in sizes]
    return {"sizes": sizes, "seconds": rows, **fitted("steps", sizes, rows)}


def fitted(axis: str, sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Exponents, their bounds, and what is above them."""
    exponents = {name: exponent(sizes, [row[name] for row in rows]) for name in BOUNDS[axis]}
    over = [name for name, bound in BOUNDS[axis].items() if exponents[name] > bound]
    for name, found in exponents.items():
        print(f"{axis}: {name} grows with exponent {found:.2f} (at most {BOUNDS[axis][name]:g})")
    return {"exponents": exponents, "bounds": BOUNDS[axis], "over": over}


def main() -> None:
    """Measure, print, write the record; the exit code says if something grew too fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    circumstances = environment()
    torch.set_num_threads(1)
    measured(by_batch(1), 1)  # imports and compiled loops
    found = {axis: along(axis, options.scales, options.repeats) for axis in AXES}
    found["steps"] = along_steps(options.steps)
    write_record(options.out, {**flat_heading(circumstances), "axes": found})
    over = [f"{axis}: {name}" for axis, one in found.items() for name in one["over"]]
    if over:
        sys.exit(f"grows too fast: {', '.join(over)}")


if __name__ == "__main__":
    main()
