"""What a step and an epoch will take, and what dominates it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from deepzero.doctor.operations import propagation_of
from deepzero.doctor.records import Forecast, LayerTime, LoopCosts
from deepzero.doctor.sampling import sample
from deepzero.errors import GraphError
from deepzero.estimator import Estimate, Estimator
from deepzero.evaluators import CostTable
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import CoordinatePerturbations, Perturbations
from deepzero.stencils import FORWARD
from deepzero.stopwatch import mean_seconds, median_seconds

LONG_STEP = 5.0
"""Seconds from which on a step is not timed but added up from the cost table."""
TIMING = 3.0
"""Seconds of timing estimates after which no further one is begun."""


def forecast(
    zo: Estimator,
    batch: tuple[Any, ...],
    perturbations: Perturbations,
    *,
    query_seconds: float,
    loop: LoopCosts | None = None,
) -> tuple[Forecast, Estimate | None]:
    """Predict; a short step is timed as a whole, and then its estimate is returned too."""
    predicted = _from_table(zo, batch, perturbations, query_seconds)
    if predicted is None:
        predicted = _from_one_query(zo, batch, perturbations, query_seconds)
    estimate = None
    if predicted.seconds_per_step <= LONG_STEP:
        seconds, estimate = time_estimates(zo, batch)
        predicted = replace(predicted, seconds_per_step=seconds, method="timed")
    return (predicted if loop is None else with_loop(predicted, loop)), estimate


def time_estimates(zo: Estimator, batch: Sequence[Any]) -> tuple[float, Estimate]:
    """Mean seconds of estimates at consecutive steps, after one that does not count; the estimator is left as it is."""
    trial = zo.copy()
    estimate = trial.estimate(*batch)

    def next_estimate() -> None:
        trial.step += 1
        trial.estimate(*batch)

    return mean_seconds(next_estimate, seconds=TIMING), estimate


def layer_times(table: CostTable, counts: dict[str, int], nodes: int) -> tuple[LayerTime, ...]:
    """Seconds by parameter, the longest first; with ``table.base`` they add up to ``table.seconds_per_step``."""
    layers = (
        LayerTime(name, count, nodes * table.parameters[name].seconds(count) / table.workers)
        for name, count in counts.items()
    )
    return longest_first(layers)


def _from_table(
    zo: Estimator, batch: tuple[Any, ...], perturbations: Perturbations, query_seconds: float
) -> Forecast | None:
    """None where differences are not propagated."""
    evaluator = propagation_of(zo.evaluator)
    if evaluator is None or not isinstance(perturbations, CoordinatePerturbations):
        return None
    if not isinstance(zo.objective, NetworkObjective):
        return None
    slow = query_seconds * len(parameters_of(zo.objective)) > LONG_STEP
    try:
        table = evaluator.costs(zo.objective, *batch, offset=zo.step_size, repeats=1 if slow else 3)
    except GraphError:
        if evaluator is zo.evaluator:
            raise
        return None
    counts = {name: len(index) for name, index in perturbations.coordinates.items()}
    nodes = len(zo.stencil.nodes)
    in_flight = [
        min(count, table.parameters[name].chunk) * table.parameters[name].bytes for name, count in counts.items()
    ]
    return Forecast(
        queries=zo.cost(perturbations),
        seconds_per_step=table.seconds_per_step(counts, nodes=nodes),
        method="cost table",
        base_seconds=table.base,
        layers=layer_times(table, counts, nodes),
        memory=table.base_bytes + table.workers * max(in_flight, default=0),
        memory_budget=evaluator.memory_budget,
    )


def _from_one_query(
    zo: Estimator, batch: tuple[Any, ...], perturbations: Perturbations, query_seconds: float
) -> Forecast:
    """All queries take what a few take, which is right for full evaluations."""
    few = sample(zo, perturbations, 8)
    some = median_seconds(lambda: zo.slopes(few, batch, stencil=FORWARD), repeats=3)
    each = max(some - query_seconds, 0.0) / len(few)
    nodes = len(zo.stencil.nodes)
    counts = {}
    if isinstance(perturbations, CoordinatePerturbations):
        counts = {name: len(index) for name, index in perturbations.coordinates.items()}
    return Forecast(
        queries=zo.cost(perturbations),
        seconds_per_step=query_seconds + nodes * len(perturbations) * each,
        method="one query",
        base_seconds=query_seconds,
        layers=longest_first(LayerTime(name, count, nodes * count * each) for name, count in counts.items()),
    )


def longest_first(layers: Iterable[LayerTime]) -> tuple[LayerTime, ...]:
    """Sorted by their seconds."""
    return tuple(sorted(layers, key=lambda layer: -layer.seconds))


def with_loop(predicted: Forecast, loop: LoopCosts) -> Forecast:
    """With the seconds of an epoch."""
    step = predicted.seconds_per_step + loop.step_overhead
    return replace(predicted, loop=loop, seconds_per_epoch=loop.steps_per_epoch * step + loop.epoch_overhead)
