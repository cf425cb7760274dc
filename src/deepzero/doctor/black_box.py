"""The examination of a black box: within a number of queries that is known before the first one."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.coordinates import Coordinates
from deepzero.doctor.asked import Asked
from deepzero.doctor.determinism import check_determinism, with_effect
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.forecast import longest_first, with_loop
from deepzero.doctor.gradients import check_gradients, estimated_pairs
from deepzero.doctor.noise import slope_size, step_for_noise
from deepzero.doctor.records import Determinism, Forecast, LayerTime, LoopCosts, MethodCost, QueryCheck, RunCost
from deepzero.doctor.sampling import sample
from deepzero.doctor.sweep import PLAIN, STEPS, USELESS, choose_step, compared, measured_slopes, with_step
from deepzero.doctor.trial import try_step
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.estimator import Estimate, Estimator
from deepzero.evaluators import SequentialEvaluator
from deepzero.executors import ExecutorEvaluator
from deepzero.objective import BlackBox, Objective, parameters_of
from deepzero.probes import CoordinatePerturbations, Perturbations, RandomProbes
from deepzero.randomness import derive_seed, seeded_scope, step_seed
from deepzero.stencils import CENTRAL, FORWARD
from deepzero.step_sizes import relative_noise, size_of

log = logging.getLogger("deepzero")

REPEATS = 8
"""Queries at the same point, from which the noise is told: its own uncertainty is then 27 %."""
MAX_QUERIES, LEAST_QUERIES = 128, 64
"""Queries that an examination may make by default, and that it must be allowed to make."""
MOST_DIRECTIONS = 16
AFTER = 3
"""Queries kept for the step of the learning rate and the last look at the parameters as they are."""
RUN_STEPS = 100
"""Steps to forecast where nothing else is asked for."""


@dataclass(frozen=True)
class RunPlan:
    """What a run is to be forecast for.

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
        """What that run takes."""
        steps = self.steps or RUN_STEPS
        if self.budget is not None:
            steps = self.budget // forecast.queries
        queries = steps * forecast.queries
        price = None if self.price is None else self.price * queries
        methods = _methods(zo, self.budget or queries)
        return RunCost(steps, queries, steps * forecast.seconds_per_step, price, methods)


def _methods(zo: Estimator, queries: int) -> tuple[MethodCost, ...]:
    """What coordinates and random directions make of a number of queries."""
    size = sum(p.numel() for p in parameters_of(zo.objective).values())
    some = zo.probes.queries if isinstance(zo.probes, RandomProbes) else max(1, round(math.sqrt(size)))
    found = []
    for method, directions, cosine in (("cge", size, 1.0), ("rge", some, math.sqrt(some / (size + some + 1)))):
        each = 1 + len(zo.stencil.nodes) * directions
        found.append(MethodCost(method, directions, each, queries // each, cosine))
    return tuple(found)


def examine_black_box(
    zo: Estimator,
    batch: tuple[Any, ...],
    *,
    learning_rate: float | None,
    steps: Sequence[float] | None,
    loop: LoopCosts | None,
    max_queries: int,
    plan: RunPlan,
) -> tuple[Diagnosis, Objective]:
    """Examine an estimator of a black box; also the objective as it was asked.

    All queries are made in this process, one after another, whatever executor the estimator has: so they are timed one
    by one, and no journal answers in the black box's place. The global random number generators are as before
    afterwards.
    """
    validation.count("max_queries", max_queries, minimum=LEAST_QUERIES)
    log.info("the doctor asks the black box at most %s times", f"{max_queries:,}")
    asked = Asked(zo.objective, max_queries)
    visit = _Visit(zo, asked, batch)
    with seeded_scope(derive_seed(zo.seed, "doctor"), torch.device("cpu")):
        found = visit.examined(learning_rate, steps)
    if found.determinism.loss is None:
        return found, asked
    assert found.queries is not None
    forecast = _forecast(zo, visit.zo.directions(*batch), found.queries.seconds)
    run = plan.cost(zo, forecast)
    return replace(found, forecast=forecast if loop is None else with_loop(forecast, loop), run=run), asked


class _Visit:
    """An estimator that asks in the examination's way."""

    def __init__(self, zo: Estimator, asked: Asked, batch: tuple[Any, ...]) -> None:
        self.zo = zo.copy(objective=asked, evaluator=SequentialEvaluator())
        self.asked, self.batch, self.function = asked, batch, zo.objective
        self.seed = step_seed(zo.seed, zo.step)

    def loss(self, parameters: Mapping[str, Tensor]) -> float:
        """One query."""
        return float(self.asked.evaluate(dict(parameters), self.batch, seed=self.seed).loss)

    def examined(self, learning_rate: float | None, steps: Sequence[float] | None) -> Diagnosis:
        """Every check in turn."""
        asked, parameters = self.asked, parameters_of(self.asked)
        self.loss(parameters)
        if asked.failures:
            raise InvalidInputError(
                f"the black box fails at {asked.failures[0]}; correct the function, its parameters or its arguments"
            )
        determinism = check_determinism(asked, self.batch, seed=self.seed, repeats=REPEATS)
        if determinism.loss is None:
            return Diagnosis(determinism, queries=self.query_check(determinism, None, None))
        reseeded = self.repeats_when_seeded() if not determinism.repeatable and asked.drawn else None
        rounding = None
        if determinism.repeatable:
            rounding = relative_noise(self.loss, parameters, self.seed) * abs(determinism.loss)
        perturbations = self.zo.directions(*self.batch)
        if len(perturbations) == 0:
            raise InvalidInputError("no coordinate is queried: give sparsity at least one coordinate")
        estimate, failure = self.estimate(perturbations)
        found = replace(self.swept(determinism, perturbations, estimate, steps), failure=failure)
        if estimate is not None:
            gradients = check_gradients(estimated_pairs(estimate.gradients, None), None)
            trial = None
            if learning_rate is not None:
                trial = try_step(asked, self.batch, estimate, learning_rate, seed=self.seed)
            found = replace(found, gradients=gradients, trial=trial)
        return replace(found, queries=self.query_check(determinism, reseeded, rounding))

    def repeats_when_seeded(self) -> bool:
        """Whether two queries agree if the global generators are seeded alike before each."""
        losses = []
        for _ in range(2):
            with seeded_scope(self.seed, torch.device("cpu")):
                losses.append(self.loss(parameters_of(self.asked)))
        return losses[0] == losses[1]

    def estimate(self, perturbations: Perturbations) -> tuple[Estimate | None, str | None]:
        """A whole estimate, if it takes no more than half of the queries that are left; and why it failed."""
        if self.zo.cost(perturbations) > self.asked.left // 2:
            return None, None
        failed = len(self.asked.failures)
        try:
            return self.zo.estimate(*self.batch), None
        except (NonFiniteLossError, InvalidInputError) as error:
            what = (self.asked.failures[failed:] or [str(error).partition(";")[0]])[0]
            return (
                None,
                f"no estimate can be made at the step size {self.zo.step_size:.1e}: {what}; lower the step size",
            )

    def telling(self, perturbations: Perturbations, estimate: Estimate | None, count: int) -> Perturbations:
        """Directions for a sweep, about ``count``: of coordinates those with the largest slopes, if they are known."""
        if estimate is None or not isinstance(perturbations, CoordinatePerturbations):
            return sample(self.zo, perturbations, count)
        coordinates = perturbations.coordinates
        sizes = torch.cat([estimate.gradients[n].reshape(-1)[i].abs().double() for n, i in coordinates.items()])
        largest = torch.zeros(len(sizes), dtype=torch.bool)
        largest[sizes.topk(min(count, len(sizes))).indices] = True
        parts = torch.split(largest & (sizes > 0), [len(index) for _, index in coordinates.items()])
        few = {n: i[part] for (n, i), part in zip(coordinates.items(), parts, strict=True) if bool(part.any())}
        if not few:
            return sample(self.zo, perturbations, count)
        return perturbations.among(Coordinates(few))

    def swept(
        self,
        determinism: Determinism,
        perturbations: Perturbations,
        estimate: Estimate | None,
        steps: Sequence[float] | None,
    ) -> Diagnosis:
        """The sweep and the choice of a step."""
        zo, parameters = self.zo, parameters_of(self.asked)
        if steps is None:
            unit = math.sqrt(statistics.fmean(size_of(p) ** 2 for p in parameters.values())) or 1.0
            steps = [step * unit for step in STEPS]
        nodes = len({node for stencil in (FORWARD, CENTRAL, zo.stencil) for node in stencil.nodes})
        room = self.asked.left - AFTER - 1
        if room // (nodes * (len(steps) + 1)) < 2:
            steps = steps[:: -(-2 * nodes * (len(steps) + 1) // max(room, 1))]
        grid = with_step(steps, zo.step_size)
        count = max(1, min(MOST_DIRECTIONS, room // (nodes * len(grid))))
        few = self.telling(perturbations, estimate, count)
        slopes, felt = measured_slopes({PLAIN: zo}, self.batch, few, steps=grid)
        sweep, agreed = compared(slopes, grid, None, felt)
        known = None if sweep.uncertainty >= USELESS else agreed
        if determinism.repeatable:
            choice = choose_step(sweep, PLAIN, zo.stencil.name, zo.step_size)
        else:
            noise = determinism.noise
            choice = step_for_noise(
                slopes, grid, noise=noise, evaluator=PLAIN, stencil=zo.stencil.name, configured=zo.step_size
            )
            size = slope_size(slopes[PLAIN, CENTRAL.name], grid, noise)
            known = None if size is None else torch.tensor([size])
        determinism = with_effect(determinism, zo.stencil, zo.step_size, known)
        return Diagnosis(determinism, sweep=sweep, step=choice)

    def query_check(self, determinism: Determinism, reseeded: bool | None, rounding: float | None) -> QueryCheck:
        """What the queries were like; asks a last one, at the parameters as they are."""
        asked, drift = self.asked, None
        if determinism.repeatable and determinism.loss is not None:
            drift = abs(self.loss(parameters_of(asked)) - determinism.loss)
            drift = drift if math.isfinite(drift) else None
        times = asked.seconds[1:]
        return QueryCheck(
            queries=asked.queries,
            max_queries=asked.limit,
            seconds=statistics.median(times),
            fastest=min(times),
            slowest=max(times),
            first=asked.seconds[0],
            repeats=REPEATS,
            noise_uncertainty=1 / math.sqrt(2 * (REPEATS - 1)),
            rounding=rounding,
            drawn=tuple(sorted(asked.drawn)),
            reseeded=reseeded,
            drift=drift,
            sendable=_sendable(self.function),
            failures=tuple(asked.failures),
        )


def _sendable(objective: Objective) -> str:
    """Why a black box's function cannot be sent to another process; nothing if it can."""
    if not isinstance(objective, BlackBox):
        return ""
    try:
        ForkingPickler.dumps(objective.function())
    except Exception as error:  # pickling runs code of the user's
        return " ".join(str(error).split())
    return ""


def _forecast(zo: Estimator, perturbations: Perturbations, query: float) -> Forecast:
    """Queries times the median of one, divided among the workers."""
    nodes = len(zo.stencil.nodes)
    workers = zo.evaluator.workers() or 1 if isinstance(zo.evaluator, ExecutorEvaluator) else 1
    counts = {}
    if isinstance(perturbations, CoordinatePerturbations):
        counts = {name: len(index) for name, index in perturbations.coordinates.items()}
    queries = zo.cost(perturbations)
    return Forecast(
        queries=queries,
        seconds_per_step=-(-queries // workers) * query,
        method="one query",
        base_seconds=query,
        layers=longest_first(LayerTime(name, n, nodes * n * query / workers) for name, n in counts.items()),
    )
