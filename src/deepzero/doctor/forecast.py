"""The queries, seconds, memory and price of a step, of an epoch and of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepzero import validation
from deepzero.doctor.direction_samples import directions_by_parameter, expected_cosine, sample
from deepzero.doctor.operations import propagation_of
from deepzero.errors import GraphError, InvalidInputError
from deepzero.estimator import Estimate, Estimator
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import Perturbations
from deepzero.stencils import FORWARD
from deepzero.stopwatch import mean_seconds, median_seconds

LONG_STEP = 5.0
"""Seconds from which on a step is not timed but added up from the cost table."""
TIMING = 3.0
"""Seconds of timing estimates after which no further one is begun."""
FEW = 8
"""Directions that are timed in place of all of a long step."""
RUN_STEPS = 100
"""Steps of a run of a black box where neither steps nor a budget are given."""


@dataclass(frozen=True)
class LoopCosts:
    """Costs of a training loop beside its estimates.

    Attributes:
        steps_per_epoch: steps of an epoch.
        step_overhead: seconds beside the estimate in a step: the batch, the optimizer.
        epoch_overhead: seconds beside the steps in an epoch: the look at the validation split.
        epochs: epochs of the run.
        startup: seconds before the first step: scores and ratios.
    """

    steps_per_epoch: int
    step_overhead: float = 0.0
    epoch_overhead: float = 0.0
    epochs: int = 1
    startup: float = 0.0


@dataclass(frozen=True)
class LayerTime:
    """Seconds that the queries of one parameter take in a step."""

    name: str
    coordinates: int
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """Queries, seconds and memory of a step, and seconds of an epoch.

    Attributes:
        queries: function values of a step, the base included.
        seconds_per_step: seconds of an estimate.
        method: of the forecast: ``timed`` (whole estimates), ``cost table`` or ``one query``.
        base_seconds: seconds of the base forward.
        layers: seconds by parameter, the longest first, by the cost table or in proportion to the queries.
        memory: bytes that an estimate takes beyond model and batch; None if the evaluator has no plan of memory.
        memory_budget: bytes that it may take.
        loop: costs of the loop besides.
        seconds_per_epoch: seconds of an epoch, the loop included; None without ``loop``.
    """

    queries: int
    seconds_per_step: float
    method: str
    base_seconds: float
    layers: tuple[LayerTime, ...]
    memory: int | None = None
    memory_budget: int | None = None
    loop: LoopCosts | None = None
    seconds_per_epoch: float | None = None

    @property
    def seconds_of_run(self) -> float | None:
        """Seconds of all epochs, and of what comes before the first step; None without ``loop``."""
        if self.loop is None or self.seconds_per_epoch is None:
            return None
        return self.loop.startup + self.loop.epochs * self.seconds_per_epoch

    def with_loop(self, loop: LoopCosts | None) -> Forecast:
        """The same with the seconds of an epoch, if the costs of the loop are known."""
        if loop is None:
            return self
        step = self.seconds_per_step + loop.step_overhead
        return replace(self, loop=loop, seconds_per_epoch=loop.steps_per_epoch * step + loop.epoch_overhead)


@dataclass(frozen=True)
class MethodCost:
    """Coordinates or random directions: their queries, and their cosine to the gradient.

    Attributes:
        method: ``cge`` or ``rge``.
        directions: of a step.
        queries: of a step.
        steps: that the queries of the run allow.
        cosine: to the gradient, as far as the number of directions decides it: 1 for all coordinates, on average
            :math:`\\sqrt{q / (d + q + 1)}` for random ones.
    """

    method: str
    directions: int
    queries: int
    steps: int
    cosine: float


@dataclass(frozen=True)
class RunCost:
    """Queries, seconds and price of a run.

    Attributes:
        steps: of the run.
        queries: of all steps.
        seconds: of all queries, on as many workers as the estimator has.
        price: of all queries; None without a price per query.
        methods: coordinates and random directions with as many queries.
    """

    steps: int
    queries: int
    seconds: float
    price: float | None = None
    methods: tuple[MethodCost, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """A run of a black box, to be forecast.

    Attributes:
        steps: of the run; None: as many as the budget allows, or 100.
        budget: queries it may take.
        price: of a query.
    """

    steps: int | None = None
    budget: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            validation.count("run_steps", self.steps)
        if self.budget is not None:
            validation.count("budget", self.budget)
        if self.price is not None:
            validation.positive("price_per_query", self.price, hint="0.01")
        if self.steps is not None and self.budget is not None:
            raise InvalidInputError("give run_steps or budget, not both: a budget says how many steps there are")

    def cost(self, zo: Estimator, forecast: Forecast) -> RunCost:
        """The cost of that run, its steps being as forecast."""
        steps = self.steps or RUN_STEPS
        if self.budget is not None:
            steps = self.budget // forecast.queries
        queries = steps * forecast.queries
        price = None if self.price is None else self.price * queries
        methods = _methods(zo, self.budget or queries)
        return RunCost(steps, queries, steps * forecast.seconds_per_step, price, methods)


def _methods(zo: Estimator, queries: int) -> tuple[MethodCost, ...]:
    """Coordinates beside random directions, for a number of queries."""
    size = sum(p.numel() for p in parameters_of(zo.objective).values())
    some = getattr(zo.probes, "queries", None) or max(1, round(math.sqrt(size)))
    costs = []
    for method, directions, cosine in (("cge", size, 1.0), ("rge", some, expected_cosine(size, some))):
        each = 1 + len(zo.stencil.nodes) * directions
        costs.append(MethodCost(method, directions, each, queries // each, cosine))
    return tuple(costs)


def forecast(
    zo: Estimator, batch: tuple[Any, ...], directions: Perturbations, *, query_seconds: float
) -> tuple[Forecast, Estimate | None]:
    """Forecast a step; a short one is timed as a whole, and then its estimate is returned too.

    Args:
        zo: the estimator; it is left as it is.
        batch: the arguments of an estimate.
        directions: of the step.
        query_seconds: seconds of one full evaluation.
    """
    predicted = _from_table(zo, batch, directions, query_seconds)
    if predicted is None:
        predicted = _from_few_queries(zo, batch, directions, query_seconds)
    if predicted.seconds_per_step > LONG_STEP:
        return predicted, None
    seconds, estimate = time_estimates(zo, batch)
    return replace(predicted, seconds_per_step=seconds, method="timed"), estimate


def forecast_black_box(zo: Estimator, directions: Perturbations, query_seconds: float) -> Forecast:
    """Queries times the seconds of one, divided among the workers of the evaluator."""
    count = getattr(zo.evaluator, "workers", None)
    workers = (count() if callable(count) else None) or 1
    seconds = -(-zo.cost(directions) // workers) * query_seconds
    return _by_queries(zo, directions, query_seconds / workers, base_seconds=query_seconds, seconds=seconds)


def time_estimates(zo: Estimator, batch: Sequence[Any]) -> tuple[float, Estimate]:
    """Mean seconds of estimates at consecutive steps, after one that does not count; the estimator is left as it is."""
    trial = zo.copy()
    estimate = trial.estimate(*batch)

    def next_estimate() -> None:
        trial.step += 1
        trial.estimate(*batch)

    return mean_seconds(next_estimate, seconds=TIMING), estimate


def _from_table(
    zo: Estimator, batch: tuple[Any, ...], directions: Perturbations, query_seconds: float
) -> Forecast | None:
    """By the measured cost of every parameter's queries; None where differences are not propagated."""
    evaluator, counts = propagation_of(zo.evaluator), directions_by_parameter(directions)
    if evaluator is None or not counts or not isinstance(zo.objective, NetworkObjective):
        return None
    slow = query_seconds * len(parameters_of(zo.objective)) > LONG_STEP
    try:
        table = evaluator.costs(zo.objective, *batch, offset=zo.step_size, repeats=1 if slow else 3)
    except GraphError:
        if evaluator is zo.evaluator:
            raise
        return None
    costs, nodes = table.parameters, len(zo.stencil.nodes)
    in_flight = [min(count, costs[name].chunk) * costs[name].bytes for name, count in counts.items()]
    layers = (LayerTime(n, count, nodes * costs[n].seconds(count) / table.workers) for n, count in counts.items())
    return Forecast(
        queries=zo.cost(directions),
        seconds_per_step=table.seconds_per_step(counts, nodes=nodes),
        method="cost table",
        base_seconds=table.base,
        layers=_longest_first(layers),
        memory=table.base_bytes + table.workers * max(in_flight, default=0),
        memory_budget=evaluator.memory_budget,
    )


def _from_few_queries(
    zo: Estimator, batch: tuple[Any, ...], directions: Perturbations, query_seconds: float
) -> Forecast:
    """All queries take what a few take, which is right for full evaluations."""
    few = sample(directions, FEW, zo.seed)
    some = median_seconds(lambda: zo.slopes(few, batch, stencil=FORWARD), repeats=3)
    each = max(some - query_seconds, 0.0) / len(few)
    seconds = query_seconds + len(zo.stencil.nodes) * len(directions) * each
    return _by_queries(zo, directions, each, base_seconds=query_seconds, seconds=seconds)


def _by_queries(
    zo: Estimator, directions: Perturbations, each: float, *, base_seconds: float, seconds: float
) -> Forecast:
    """A step whose queries take ``each`` second alike."""
    counts, nodes = directions_by_parameter(directions), len(zo.stencil.nodes)
    layers = (LayerTime(name, count, nodes * count * each) for name, count in counts.items())
    return Forecast(zo.cost(directions), seconds, "one query", base_seconds, _longest_first(layers))


def _longest_first(layers: Iterable[LayerTime]) -> tuple[LayerTime, ...]:
    return tuple(sorted(layers, key=lambda layer: -layer.seconds))
