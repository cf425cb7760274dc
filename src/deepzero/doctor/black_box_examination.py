"""The examination of a black box: within a number of queries that is known before the first one."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.doctor.determinism import Determinism, check_determinism, with_effect
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.direction_samples import directions_of, sample
from deepzero.doctor.forecast import LoopCosts, RunPlan, forecast_black_box
from deepzero.doctor.gradient_check import check_gradients, try_step
from deepzero.doctor.metered_objective import MeteredObjective
from deepzero.doctor.step_choice import USELESS, choose_step, slope_size, step_for_noise
from deepzero.doctor.sweep import PLAIN, STEPS, compare_slopes, measure_slopes, with_step
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.estimator import Estimate, Estimator
from deepzero.evaluators import SequentialEvaluator
from deepzero.objective import Parameters, parameters_of
from deepzero.probes import Perturbations
from deepzero.randomness import derive_seed, seeded_scope, step_seed
from deepzero.stencils import CENTRAL, FORWARD
from deepzero.step_sizes import relative_noise, size_of

log = logging.getLogger("deepzero")

REPEATS = 8
"""Queries at the same point that measure the noise: its own uncertainty is then 27 %."""
MAX_QUERIES, LEAST_QUERIES = 128, 64
"""Queries that an examination may make by default, and that it must be allowed to make."""
MOST_DIRECTIONS = 16
AFTER = 3
"""Queries kept for the step of the learning rate and the last look at the parameters as they are."""
CPU = torch.device("cpu")


def examine_black_box(
    zo: Estimator,
    batch: tuple[Any, ...],
    *,
    learning_rate: float | None,
    steps: Sequence[float] | None,
    loop: LoopCosts | None,
    max_queries: int,
    plan: RunPlan,
) -> Diagnosis:
    """Examine an estimator of a black box; the estimator is left as it is. Arguments as for :func:`diagnose`.

    All queries are made in this process, one after another, whatever executor the estimator has: so they are timed one
    by one, and no journal answers in the black box's place. The global random number generators are as before
    afterwards.
    """
    validation.count("max_queries", max_queries, minimum=LEAST_QUERIES)
    log.info("the doctor asks the black box at most %s times", f"{max_queries:,}")
    metered, seed = MeteredObjective(zo.objective, max_queries), step_seed(zo.seed, zo.step)
    metered_zo = zo.copy(objective=metered, evaluator=SequentialEvaluator())
    parameters, ask = parameters_of(metered), partial(_loss, metered, batch, seed)
    with seeded_scope(derive_seed(zo.seed, "doctor"), CPU):
        ask(parameters)
        if metered.failures:
            raise InvalidInputError(
                f"the black box fails at {metered.failures[0]}; correct the function, its parameters or its arguments"
            )
        determinism = check_determinism(metered, batch, seed=seed, repeats=REPEATS)
        if determinism.loss is None:
            return Diagnosis(determinism, queries=metered.check(REPEATS))
        reseeded = rounding = drift = trial = None
        if determinism.repeatable:
            rounding = relative_noise(ask, parameters, seed) * abs(determinism.loss)
        elif metered.drawn:
            reseeded = _repeats_when_seeded(ask, parameters, seed)
        directions = directions_of(metered_zo, batch)
        estimate, failure = _estimate(metered_zo, metered, batch, directions)
        found = _sweep(metered_zo, metered, batch, directions, determinism, estimate, steps)
        if estimate is not None and learning_rate is not None:
            trial = try_step(metered, batch, estimate, learning_rate, seed=seed)
        if determinism.repeatable:
            drift = abs(ask(parameters) - determinism.loss)
        queries = metered.check(REPEATS, rounding=rounding, reseeded=reseeded, drift=drift)
    step_forecast = forecast_black_box(zo, directions, queries.seconds)
    return replace(
        found,
        gradients=None if estimate is None else check_gradients(estimate.gradients, None),
        forecast=step_forecast.with_loop(loop),
        trial=trial,
        failure=failure,
        queries=queries,
        run=plan.cost(zo, step_forecast),
    )


def _loss(metered: MeteredObjective, batch: tuple[Any, ...], seed: int, parameters: Parameters) -> float:
    """One query."""
    return float(metered.evaluate(parameters, batch, seed=seed).loss)


def _repeats_when_seeded(ask: Callable[[Parameters], float], parameters: Parameters, seed: int) -> bool:
    """True if two queries agree when the global generators are seeded alike before each."""
    losses = []
    for _ in range(2):
        with seeded_scope(seed, CPU):
            losses.append(ask(parameters))
    return losses[0] == losses[1]


def _estimate(
    zo: Estimator, metered: MeteredObjective, batch: tuple[Any, ...], directions: Perturbations
) -> tuple[Estimate | None, str | None]:
    """A whole estimate, if it takes no more than half of the remaining queries; and why it failed."""
    if zo.cost(directions) > metered.remaining // 2:
        return None, None
    before = len(metered.failures)
    try:
        return zo.estimate(*batch), None
    except (NonFiniteLossError, InvalidInputError) as error:
        cause = (metered.failures[before:] or [str(error).partition(";")[0]])[0]
        return None, f"no estimate can be made at the step size {zo.step_size:.1e}: {cause}; lower the step size"


def _sweep(
    zo: Estimator,
    metered: MeteredObjective,
    batch: tuple[Any, ...],
    directions: Perturbations,
    determinism: Determinism,
    estimate: Estimate | None,
    steps: Sequence[float] | None,
) -> Diagnosis:
    """The sweep with the remaining queries, the choice of a step, and the effect of the noise on slopes."""
    grid, count = _extent(zo, metered, steps)
    few = sample(directions, count, zo.seed, gradients=None if estimate is None else estimate.gradients)
    swept = measure_slopes({PLAIN: zo}, batch, few, grid)
    sweep, agreed = compare_slopes(swept, None)
    slopes: Tensor | None
    if determinism.repeatable:
        choice = choose_step(sweep, PLAIN, zo.stencil.name, zo.step_size)
        slopes = None if sweep.uncertainty >= USELESS else agreed
    else:
        noise, stencil = determinism.noise, zo.stencil.name
        choice = step_for_noise(swept, noise=noise, evaluator=PLAIN, stencil=stencil, configured=zo.step_size)
        size = slope_size(swept.values[PLAIN, CENTRAL.name], grid, noise)
        slopes = None if size is None else torch.tensor([size])
    return Diagnosis(with_effect(determinism, zo.stencil, zo.step_size, slopes), sweep=sweep, step=choice)


def _extent(zo: Estimator, metered: MeteredObjective, steps: Sequence[float] | None) -> tuple[list[float], int]:
    """Step sizes of a sweep, by default in units of the parameters' size, and the number of directions."""
    if steps is None:
        sizes = [size_of(parameter) ** 2 for parameter in parameters_of(metered).values()]
        unit = math.sqrt(statistics.fmean(sizes)) or 1.0
        steps = [step * unit for step in STEPS]
    nodes = len({node for stencil in (FORWARD, CENTRAL, zo.stencil) for node in stencil.nodes})
    room = metered.remaining - AFTER - 1
    if room // (nodes * (len(steps) + 1)) < 2:
        steps = steps[:: -(-2 * nodes * (len(steps) + 1) // max(room, 1))]
    grid = with_step(steps, zo.step_size)
    return grid, max(1, min(MOST_DIRECTIONS, room // (nodes * len(grid))))
