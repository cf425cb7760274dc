"""Fig. A6: training speed by number of workers, measured here and simulated beyond."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from deepzero import models
from deepzero.estimator import CGE, Estimator
from deepzero.evaluators import PropagationEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.image_batches import Batch, noise_batch
from deepzero.measure.rounds import by_side, in_turns
from deepzero.measure.simulated_workers import Machine, simulate
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Measurement
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.sparsity import DynamicRatios, smart_ratio
from deepzero.stopwatch import seconds_of
from deepzero.tasks.classification import DataConfig

SPARSITY = 0.9
THREADS = (1, 2, 4, 8, 16)
"""As far as the machine has cores."""

SIMULATED = (1, 2, 4, 8, 16, 32, 64, 128)
LATENCY, BANDWIDTH = 50e-6, 1.25e9
"""Of the simulated network: seconds a message, and bytes a second (10 Gbit/s Ethernet)."""


def _estimators(
    model: str, options: dict[str, Any], image_size: int, channels: int, batch_size: int, device: str
) -> tuple[Callable[[int], Estimator], Batch]:
    """A factory of estimators by the number of their workers, and a batch."""
    network = models.build(model, in_channels=channels, image_size=image_size, **options).to(device)
    ratios = DynamicRatios(smart_ratio(network, SPARSITY))
    return lambda workers: CGE(
        network, loss=LOSSES["cross-entropy"], sparsity=ratios, evaluator=PropagationEvaluator(workers=workers)
    ), noise_batch(batch_size, channels, image_size, seed=derive_seed(0, "noise"), device=device)


def measured(*, counts: list[int], repeats: int, device: str, **problem: Any) -> dict[str, Any]:
    """Seconds of estimates with every number of worker threads, in turns, and of a base forward and every query."""
    make, batch = _estimators(**problem, device=device)
    estimators = {workers: make(workers) for workers in counts if workers <= (os.cpu_count() or 1)}
    for zo in estimators.values():
        zo.estimate(*batch)  # exports, compiles and verifies
    seconds = by_side(
        in_turns({str(workers): partial(_seconds, zo, batch) for workers, zo in estimators.items()}, repeats)
    )
    one = make(1)
    assert isinstance(one.objective, NetworkObjective)
    assert isinstance(one.evaluator, PropagationEvaluator)
    table = one.evaluator.costs(one.objective, *batch, repeats=3)
    directions = one.directions(*batch)
    prepared = one.evaluator.prepare(one.step_queries(directions, [one.step_size], batch))
    machine = Machine(table.base, table.seconds_per_query(), LATENCY, BANDWIDTH)
    forecasts = [simulate(prepared.jobs, machine, workers) for workers in SIMULATED]
    prepared.release()
    return {
        "queries": one.cost(directions),
        "measured": seconds,
        "simulated": {str(f.workers): f.seconds for f in forecasts},
    }


def _seconds(zo: Estimator, batch: Batch, _: int) -> float:
    return seconds_of(partial(zo.estimate, *batch))


def cells(scale: Scale) -> Iterator[Cell]:
    """One measurement of all."""
    options = {
        **scale["problem"],
        "batch_size": scale.images.batch_size,
        "counts": list(THREADS),
        "repeats": scale["repeats"],
    }
    yield Cell(labels={"workers": "1 and more"}, work=Measurement(measured, options))


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Steps an hour by number of workers."""
    rows, series = [], []
    for run in outcomes:
        ours = {int(n): statistics.median(values) for n, values in run.result["measured"].items()}
        foretold = {int(n): seconds for n, seconds in run.result["simulated"].items()}
        for n in sorted({*ours, *foretold}):
            speed_up = f"{ours[1] / ours[n]:.2f}" if n in ours else MISSING
            rows.append(
                [
                    str(n),
                    f"{3600 / ours[n]:,.0f}" if n in ours else MISSING,
                    speed_up,
                    f"{3600 / foretold[n]:,.0f}" if n in foretold else MISSING,
                    f"{foretold[1] / foretold[n]:.2f}" if n in foretold else MISSING,
                ]
            )
        for name, curve in (("measured", ours), ("simulated", foretold)):
            series.append(Series(name=name, x=list(curve), y=[3600 / seconds for seconds in curve.values()]))
    table = Table(
        title="Speed by number of workers",
        columns=["workers", "steps an hour, measured", "speed-up", "steps an hour, simulated", "speed-up, simulated"],
        rows=rows,
        note=(
            "Measured: threads of one process, median of the estimates. Simulated: shares of the chunks from the costs "
            f"measured on one, a base forward each, {LATENCY * 1e6:.0f} µs a message. The paper: linear in the GPUs."
        ),
    )
    figure = Figure(
        title="Steps an hour against workers",
        x_label="workers",
        y_label="steps an hour",
        series=series,
        x_log=True,
        y_log=True,
    )
    return Presentation(tables=[table], figures=[figure])


EXPERIMENT = Experiment(
    name="figA6",
    title="Fig. A6: training speed by number of workers",
    scales={
        "smoke": Scale(
            caption="A ResNet-8 of 4, 8 and 16 channels, noise of 8x8 pixels, batch of 16.",
            data=DataConfig(name="digits", batch_size=16),
            grid={
                "problem": {"model": "resnet8", "options": {"width": 4}, "image_size": 8, "channels": 1},
                "repeats": 2,
            },
        ),
        "small": Scale(
            caption="A ResNet-8 of 16, 32 and 64 channels at 90 % sparsity, noise of 16x16 pixels, batch of 128.",
            data=DataConfig(name="cifar10", batch_size=128),
            grid={
                "problem": {"model": "resnet8", "options": {"width": 16}, "image_size": 16, "channels": 3},
                "repeats": 3,
            },
        ),
        "paper": Scale(
            caption="ResNet-20 at 90 % sparsity, noise of 32x32 pixels, batch of 256.",
            data=DataConfig(name="cifar10", batch_size=256),
            grid={
                "problem": {"model": "resnet20", "options": {}, "image_size": 32, "channels": 3},
                "repeats": 3,
            },
        ),
    },
    cells=cells,
    present=present,
)
