"""Error against step size: where rounding and noise end, and where curvature begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepzero.doctor.records import Curve, Point, StepChoice, Sweep
from deepzero.doctor.reference import agreed_slopes
from deepzero.errors import InvalidInputError
from deepzero.estimator import Estimator
from deepzero.objective import Objective, parameters_of
from deepzero.probes import Perturbations
from deepzero.stencils import CENTRAL, FORWARD

PLAIN = "sequential"
"""The name of plain differences of two losses."""
STEPS = tuple(10 ** (k / 2) for k in range(-14, -1))
"""Half-decades from 1e-7 to 1e-1."""
AGREES = 0.1
"""Relative error up to which an estimate is said to agree with autograd."""
ACCURATE = 1e-3
"""Relative error below which nothing is gained: batches differ by far more."""
USELESS = 0.5
"""Relative error from which on an estimate is noise."""
AS_GOOD = 0.1
"""Relative error up to which a step is as good as any: a step along the estimate lowers the loss, to first order, by at
least 90 % of what one along the gradient does."""
BLIND = 0.25
"""Part of the slopes that are 0 at a step but not at the largest, from which on the step does not see the function."""


def with_step(steps: Sequence[float], step_size: float) -> list[float]:
    """The steps with ``step_size`` among them, in place of the nearest if that is nearer than a quarter of a decade.

    Example:
        >>> with_step([1e-3, 1e-2], 5e-3), with_step([1e-3, 1e-2], 1.0)
        ([0.001, 0.005, 0.01], [0.001, 0.01, 1.0])
    """
    near = min(steps, key=lambda step: abs(math.log(step / step_size)))
    replaced = abs(math.log10(near / step_size)) <= 0.25
    return sorted({*(step for step in steps if not (replaced and step == near)), step_size})


def run_sweep(
    estimators: Mapping[str, Estimator],
    batch: tuple[Any, ...],
    perturbations: Perturbations,
    *,
    steps: Sequence[float],
    exact: tuple[str, Tensor] | None,
) -> tuple[Sweep, Tensor]:
    """Query the same directions at all steps with all evaluators and all stencils; also the slopes taken for true.

    Args:
        estimators: of one objective, by the names of their evaluators; the one that will be used comes first. Its
            stencil is looked at beside ``FORWARD`` and ``CENTRAL``.
        batch: the arguments of an estimate.
        perturbations: ``K`` directions.
        steps: increasing.
        exact: a name and exact slopes ``[K]``, if there are any.
    """
    slopes, felt = measured_slopes(estimators, batch, perturbations, steps=steps)
    return compared(slopes, list(steps), exact, felt)


Slopes = dict[tuple[str, str], Tensor]
"""Slopes ``[S, K]`` of ``K`` directions at ``S`` steps, by evaluator and stencil; NaN where a step vanishes."""


def measured_slopes(
    estimators: Mapping[str, Estimator],
    batch: tuple[Any, ...],
    perturbations: Perturbations,
    *,
    steps: Sequence[float],
) -> tuple[Slopes, dict[str, list[float]]]:
    """The slopes of a sweep, and by evaluator the steps that do not vanish."""
    stencils = tuple({s.name: s for s in (FORWARD, CENTRAL, next(iter(estimators.values())).stencil)}.values())
    nodes = sorted({node for s in stencils for node in s.nodes})
    slopes: Slopes = {}
    felt: dict[str, list[float]] = {}
    for name, zo in estimators.items():
        kept = list(steps) if name == "propagation" else _felt(zo.objective, perturbations, steps, nodes)
        queries = zo.step_queries(perturbations, [node * step for step in kept for node in nodes], batch)
        answers = zo.measure(queries)
        table = answers.differences.cpu().reshape(len(kept), len(nodes), -1)
        taken = answers.taken(queries).cpu().reshape(table.shape)
        for s in stencils:
            rows = [nodes.index(node) for node in s.nodes]
            found = {step: s.slopes(table[i, rows], taken[i, rows]) for i, step in enumerate(kept)}
            nothing = torch.full((len(perturbations),), math.nan, dtype=torch.float64)
            slopes[name, s.name] = torch.stack([found.get(step, nothing) for step in steps])
        felt[name] = kept
    return slopes, felt


def _felt(
    objective: Objective, perturbations: Perturbations, steps: Sequence[float], nodes: Sequence[float]
) -> list[float]:
    """The steps that do not vanish when they are added to the parameters."""
    parameters, kept = parameters_of(objective), []
    for step in steps:
        with suppress(InvalidInputError):
            perturbations.taken(parameters, [node * step for node in nodes])
            kept.append(step)
    return kept


def compared(
    slopes: Slopes,
    steps: list[float],
    exact: tuple[str, Tensor] | None,
    felt: Mapping[str, Sequence[float]],
) -> tuple[Sweep, Tensor]:
    """The errors of a sweep's slopes against exact ones, or those on which neighbouring steps agree."""
    first = next(iter(slopes))[0]
    disagrees = False
    if exact is not None:
        kind, reference, uncertainty = *exact, 0.0
        best = min(_errors(slopes[first, CENTRAL.name], reference), default=math.inf)
        disagrees = not best <= AGREES and bool(slopes[first, CENTRAL.name].any())
    if exact is None or disagrees:
        kind = "neighbouring steps"
        reference, uncertainty = agreed_slopes(slopes[first, CENTRAL.name], steps)
    curves = tuple(_curve(*names, rows, reference, steps, felt[names[0]]) for names, rows in slopes.items())
    found = Sweep(
        reference=kind,
        uncertainty=uncertainty if math.isfinite(uncertainty) else 1.0,
        samples=len(reference),
        curves=curves,
        noise_floor={
            name: steps[0] * float((rows[0] - reference).square().mean().sqrt())
            for (name, stencil), rows in slopes.items()
            if stencil == FORWARD.name and bool(rows[0].isfinite().all())
        },
        autograd_disagrees=disagrees,
        flat_below=_flat_below(curves[0]),
    )
    return found, reference


def _errors(slopes: Tensor, reference: Tensor) -> list[float]:
    """Relative errors of the rows; infinite where a slope is not finite."""
    scale = float(reference.norm()) or 1.0
    errors = [float((row - reference).norm()) / scale for row in slopes]
    return [error if math.isfinite(error) else math.inf for error in errors]


def _curve(
    evaluator: str, stencil: str, slopes: Tensor, reference: Tensor, steps: list[float], felt: Sequence[float]
) -> Curve:
    zeros = (slopes == 0).double().mean(1).tolist()
    errors = [error if math.isfinite(error) else None for error in _errors(slopes, reference)]
    points = (Point(step, error, zero, step in felt) for step, error, zero in zip(steps, errors, zeros, strict=True))
    return Curve(evaluator, stencil, tuple(points))


def _flat_below(curve: Curve) -> float | None:
    """The first step that sees what the largest does, if the middle of the sweep, far above rounding, does not."""
    blind = [point.zeros > curve.points[-1].zeros + BLIND for point in curve.points]
    if not blind[len(blind) // 2]:
        return None
    return curve.points[len(blind) - blind[::-1].index(True)].step_size


def choose_step(sweep: Sweep, evaluator: str, stencil: str, configured: float) -> StepChoice | None:
    """The middle of the flat part of a curve: the steps around the best one with an error that is as good.

    As good is up to twice the least error, or below what matters (0.1 %), or below what the reference can tell. The
    middle, on the logarithmic scale, is farthest both from noise and from curvature, which change as training
    goes on. None if every step gives noise, or if small steps see only flat pieces of the loss.
    """
    if sweep.flat_below is not None:
        return None
    points = sweep.curve(evaluator, stencil).points
    errors = [math.inf if p.error is None else p.error for p in points]
    best = min(range(len(points)), key=errors.__getitem__)
    if not errors[best] < USELESS or sweep.uncertainty >= USELESS:
        return None
    limit = max(2 * errors[best], ACCURATE, sweep.uncertainty)
    low, high = best, best
    while low > 0 and errors[low - 1] <= limit:
        low -= 1
    while high + 1 < len(points) and errors[high + 1] <= limit:
        high += 1
    middle = (low + high + 1) // 2
    asked = next((p for p in points if p.step_size == configured), None)
    start, stop = points[low].step_size, points[high].step_size
    plain = next((c for c in sweep.curves if (c.evaluator, c.stencil) == (PLAIN, stencil)), None)
    choice = StepChoice(
        evaluator=evaluator,
        stencil=stencil,
        step_size=points[middle].step_size,
        low=start,
        high=stop,
        error=errors[middle],
        configured=configured,
        configured_error=asked.error if asked else None,
        felt=asked is None or asked.felt,
        reason=f"from {start:.1e} to {stop:.1e} the error stays below {limit:.1e}; the middle is safe on both "
        "sides, from noise below and from curvature above",
        plain_error=None if plain is None or evaluator == PLAIN else plain.points[middle].error,
    )
    return judged(choice, errors[middle], asked.error if asked else None, sweep.samples)


def judged(choice: StepChoice, error: float, configured_error: float | None, samples: int) -> StepChoice:
    """The choice with what was measured at both steps, and whether the configured one is as good."""
    limit = max(AS_GOOD, 2 * error)
    good = choice.felt and configured_error is not None and configured_error <= limit
    return replace(choice, error=error, configured_error=configured_error, samples=samples, as_good=good)
