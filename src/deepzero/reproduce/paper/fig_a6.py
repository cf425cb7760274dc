"""Fig. A6: training speed by number of workers, measured here and simulated beyond."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from deepzero import models
from deepzero.estimator import CGE, Estimator
from deepzero.evaluators import PropagationEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.drawn_batches import Batch, noise_batch
from deepzero.measure.rounds import by_side, in_turns
from deepzero.measure.simulated_workers import Machine, simulate
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, SingleMeasurement
from deepzero.reproduce.experiment import Experiment, Scale
from deepzero.reproduce.presentation import MISSING, Outcomes, Presentation
from deepzero.sparsity import DynamicRatios, smart_ratio
from deepzero.stopwatch import seconds_of
from deepzero.tasks.classification import ModelConfig

SPARSITY = 0.9
THREADS = (1, 2, 4, 8, 16)
"""Numbers of threads, up to the number of cores."""

SIMULATED = (1, 2, 4, 8, 16, 32, 64, 128)
LATENCY, BANDWIDTH = 50e-6, 1.25e9
"""Seconds a message and bytes a second of the simulated network (10 Gbit/s Ethernet)."""


def _estimator(network: nn.Module, ratios: DynamicRatios, workers: int) -> Estimator:
    evaluator = PropagationEvaluator(workers=workers)
    return CGE(network, loss=LOSSES["cross-entropy"], sparsity=ratios, evaluator=evaluator)


def measured(
    *,
    model: str,
    options: dict[str, Any],
    image_size: int,
    channels: int,
    batch_size: int,
    counts: list[int],
    repeats: int,
    device: str,
) -> dict[str, Any]:
    """Seconds of estimates with every number of worker threads, in turns, and of a base forward and every query."""
    network = models.build(model, in_channels=channels, image_size=image_size, **options).to(device)
    ratios = DynamicRatios(smart_ratio(network, SPARSITY))
    batch = noise_batch(batch_size, channels, image_size, seed=derive_seed(0, "noise"), device=device)
    estimators = {n: _estimator(network, ratios, n) for n in counts if n <= (os.cpu_count() or 1)}
    for zo in estimators.values():
        zo.estimate(*batch)  # exports, compiles and verifies
    seconds = by_side(in_turns({str(n): partial(_seconds, zo, batch) for n, zo in estimators.items()}, repeats))
    one = _estimator(network, ratios, 1)
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


@dataclass(frozen=True, kw_only=True)
class FigA6Scale(Scale):
    """The scale of Fig. A6.

    Attributes:
        model: the network.
        channels: of an image of noise.
        image_size: its side in pixels.
        batch_size: images of the batch.
        repeats: estimates timed for each number of workers.
    """

    model: ModelConfig
    channels: int = 3
    image_size: int
    batch_size: int
    repeats: int = 3


def cells(scale: FigA6Scale) -> Iterator[Cell]:
    """One measurement of all."""
    options = {
        "model": scale.model.name,
        "options": dict(scale.model.options),
        "channels": scale.channels,
        "image_size": scale.image_size,
        "batch_size": scale.batch_size,
        "counts": list(THREADS),
        "repeats": scale.repeats,
    }
    yield Cell(labels={"workers": "1 and more"}, work=SingleMeasurement(measured, options))


def present(outcomes: Outcomes, _: FigA6Scale) -> Presentation:
    """Steps an hour by number of workers."""
    rows: list[list[str]] = []
    series = []
    for run in outcomes:
        medians = {int(n): statistics.median(values) for n, values in run.result["measured"].items()}
        simulated = {int(n): seconds for n, seconds in run.result["simulated"].items()}
        rows += [[str(n), *_speed(medians, n), *_speed(simulated, n)] for n in sorted({*medians, *simulated})]
        for name, curve in (("measured", medians), ("simulated", simulated)):
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


def _speed(seconds: dict[int, float], workers: int) -> list[str]:
    """Steps an hour, and how much faster that is than one worker."""
    if workers not in seconds:
        return [MISSING] * 2
    return [f"{3600 / seconds[workers]:,.0f}", f"{seconds[1] / seconds[workers]:.2f}"]


EXPERIMENT = Experiment(
    name="figA6",
    title="Fig. A6: training speed by number of workers",
    scales={
        "smoke": FigA6Scale(
            caption="A ResNet-8 of 4, 8 and 16 channels, noise of 8x8 pixels, batch of 16.",
            model=ModelConfig(name="resnet8", options={"width": 4}),
            channels=1,
            image_size=8,
            batch_size=16,
            repeats=2,
        ),
        "small": FigA6Scale(
            caption="A ResNet-8 of 16, 32 and 64 channels at 90 % sparsity, noise of 16x16 pixels, batch of 128.",
            model=ModelConfig(name="resnet8", options={"width": 16}),
            image_size=16,
            batch_size=128,
        ),
        "paper": FigA6Scale(
            caption="ResNet-20 at 90 % sparsity, noise of 32x32 pixels, batch of 256.",
            model=ModelConfig(name="resnet20"),
            image_size=32,
            batch_size=256,
        ),
    },
    cells=cells,
    present=present,
)
