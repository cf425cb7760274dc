"""The examination of a network: every check in turn, on a few samples of a run's first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepzero.doctor.determinism import check_determinism, with_effect
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.direction_samples import (
    directions_by_parameter,
    directions_of,
    expected_cosine,
    sample,
    slopes_along,
)
from deepzero.doctor.exact_gradients import Exact, exact_gradients
from deepzero.doctor.forecast import LoopCosts, forecast
from deepzero.doctor.gradient_check import GradientCheck, check_gradients, try_step
from deepzero.doctor.operations import MOST_SAMPLES, check_propagation, evaluator_name
from deepzero.doctor.step_choice import USELESS, StepChoice, choose_step
from deepzero.doctor.sweep import PLAIN, Sweep, compare_slopes, measure_slopes, with_step
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.estimator import Estimate, Estimator
from deepzero.evaluators import SequentialEvaluator
from deepzero.objective import Objective, first_query, parameters_of, steady
from deepzero.probes import Perturbations, coordinates_of
from deepzero.randomness import step_seed
from deepzero.stopwatch import median_seconds

LEAST_SAMPLES = 4
PER_PARAMETER = 4
"""Coordinates of a parameter that are compared with autograd, if the time allows."""


def examine_network(
    zo: Estimator,
    batch: tuple[Any, ...],
    *,
    learning_rate: float | None,
    steps: Sequence[float],
    loop: LoopCosts | None,
    seconds: float,
) -> Diagnosis:
    """Examine an estimator of a network; the estimator is left as it is. Arguments as for :func:`diagnose`."""
    zo, seed = zo.copy(), step_seed(zo.seed, zo.step)
    determinism = check_determinism(zo.objective, batch, seed=seed)
    if determinism.loss is None:
        return Diagnosis(determinism)
    query = query_seconds(zo.objective, batch, seed)
    directions = directions_of(zo, batch)
    operations = check_propagation(zo, batch, directions)
    if operations is not None and operations.problem is not None and operations.instead is None:
        zo = zo.copy(evaluator=SequentialEvaluator())
    exact = exact_gradients(zo.objective, batch, seed=seed, loss=determinism.loss)
    sweep, slopes = _sweep(zo, batch, directions, steps, exact, affordable=seconds / query)
    choice = choose_step(sweep, evaluator_name(zo), zo.stencil.name, zo.step_size)
    found = Diagnosis(
        determinism=with_effect(determinism, zo.stencil, zo.step_size, slopes),
        operations=operations,
        plan=_plan(zo, batch, directions),
        sweep=sweep,
        step=choice,
    )
    try:
        step_forecast, estimate = forecast(zo, batch, directions, query_seconds=query)
    except (NonFiniteLossError, InvalidInputError) as error:
        return replace(found, failure=str(error))
    if coordinates_of(directions) is None:
        gradients = _check_estimate(zo, directions, estimate, exact)
    else:
        gradients, choice = _check_coordinates(zo, batch, directions, exact, sweep, choice, affordable=seconds / query)
    trial = None
    if learning_rate is not None and estimate is not None:
        trial = try_step(zo.objective, batch, estimate, learning_rate, seed=seed)
    return replace(found, step=choice, gradients=gradients, forecast=step_forecast.with_loop(loop), trial=trial)


def query_seconds(objective: Objective, batch: tuple[Any, ...], seed: int) -> float:
    """Seconds of one full evaluation as a perturbed query makes it, not of the base query, which does more."""
    parameters = parameters_of(objective)
    with steady(objective):
        _, query = first_query(objective, parameters, batch, seed)
        return median_seconds(lambda: query(parameters), repeats=3)


def _plan(zo: Estimator, batch: tuple[Any, ...], directions: Perturbations) -> tuple[str, ...]:
    """The way queries are run, in lines; nothing if the evaluator has one way only."""
    explain = getattr(zo.evaluator, "explain", None)
    if explain is None:
        return ()
    return tuple(explain(zo.objective, None if coordinates_of(directions) is None else batch).splitlines())


def _sweep(
    zo: Estimator,
    batch: tuple[Any, ...],
    directions: Perturbations,
    steps: Sequence[float],
    exact: Exact | None,
    *,
    affordable: float,
) -> tuple[Sweep, Tensor | None]:
    """A sweep of as many directions as are affordable, by the estimator's evaluator and by plain differences.

    Returns:
        The sweep, and the slopes without noise: by autograd, or agreed upon; None if there is no agreement.
    """
    estimators = {evaluator_name(zo): zo, PLAIN: zo.copy(evaluator=SequentialEvaluator())}
    each = affordable / (2 * len(estimators))
    if each / len(steps) < 2 * LEAST_SAMPLES:
        steps = steps[::2]
    few = sample(directions, max(LEAST_SAMPLES, min(MOST_SAMPLES, int(each / len(steps)))), zo.seed)
    swept = measure_slopes(estimators, batch, few, with_step(steps, zo.step_size))
    if exact is None:
        sweep, agreed = compare_slopes(swept, None)
        return sweep, None if sweep.uncertainty >= USELESS else agreed
    slopes = slopes_along(few, exact.gradients)
    return compare_slopes(swept, (exact.kind, slopes))[0], slopes


def _check_estimate(
    zo: Estimator, directions: Perturbations, estimate: Estimate | None, exact: Exact | None
) -> GradientCheck | None:
    """The whole of an estimate along random directions against autograd."""
    if estimate is None:
        return None
    size = sum(p.numel() for p in parameters_of(zo.objective).values())
    check = check_gradients(estimate.gradients, exact)
    return replace(check, expected_cosine=expected_cosine(size, len(directions)))


def _check_coordinates(
    zo: Estimator,
    batch: tuple[Any, ...],
    directions: Perturbations,
    exact: Exact | None,
    sweep: Sweep,
    choice: StepChoice | None,
    *,
    affordable: float,
) -> tuple[GradientCheck, StepChoice | None]:
    """Sampled coordinates against autograd, at the configured and at the recommended step.

    Returns:
        The check at the configured step, and the choice of a step with the errors of both checks in place of the
        sweep's, if there are any.
    """
    sizes = directions_by_parameter(directions)
    most = max(MOST_SAMPLES, PER_PARAMETER * len(sizes))
    few = sample(directions, max(len(sizes), min(most, int(affordable))), zo.seed)
    sampled, counts = coordinates_of(few), directions_by_parameter(few)

    def check(step: float) -> GradientCheck:
        slopes = zo.slopes(few, batch, step_size=step).values
        parts = torch.split(slopes, list(counts.values()))
        return check_gradients(dict(zip(counts, parts, strict=True)), exact, sampled, sizes)

    configured = check(zo.step_size)
    if choice is None or exact is None:
        return configured, choice
    recommended = configured if choice.step_size == zo.step_size else check(choice.step_size)
    if sweep.autograd_disagrees or configured.relative_error is None or recommended.relative_error is None:
        return configured, choice
    return configured, choice.with_errors(recommended.relative_error, configured.relative_error, len(few))
