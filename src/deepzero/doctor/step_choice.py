"""The recommended step size: from the errors of a sweep, or where losses are noisy, from noise and curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from deepzero.doctor.sweep import PLAIN, Sweep, SweptSlopes
from deepzero.stencils import CENTRAL, FORWARD

USELESS = 0.5
"""Relative error from which on an estimate is noise."""
ACCURATE = 1e-3
"""Relative error below which nothing is gained: batches differ by far more."""
AS_GOOD = 0.1
"""Relative error up to which a step is as good as any: a step along the estimate lowers the loss, to first order, by at
least 90 % of what one along the gradient does."""
CLEAR = 10.0
"""Ratio to its noise from which on a root mean square over directions says something. (Moré and Wild, 2012, ask for 100
of a second difference, where a single one decides.)"""
FACTORS = {FORWARD.name: (2, 0.5, math.sqrt(2.0)), CENTRAL.name: (3, 1 / 6, math.sqrt(0.5))}
"""By stencil: the order of the derivative in its error, that derivative's factor, and the factor of the noise."""


@dataclass(frozen=True)
class StepChoice:
    """The recommended step size.

    Attributes:
        evaluator: the evaluator it is for.
        stencil: the stencil it is for.
        step_size: recommended step size, the middle of the flat part of the error curve.
        low: smallest step size of the flat part.
        high: largest step size of the flat part.
        error: relative error at ``step_size``.
        configured: the step size of the run.
        configured_error: relative error there, None if a loss was not finite.
        felt: True if the configured step moves every parameter that it is added to.
        reason: the choice explained.
        samples: coordinates or directions behind the two errors.
        plain_error: relative error at ``step_size`` of a plain difference of two losses, as an evaluator without
            propagation has it; None where such differences are what is used.
        as_good: True if the configured step is as good as the recommended one: its error is at most a tenth, or twice
            the recommended step's. A step along an estimate with relative error :math:`\\varepsilon` lowers the loss,
            to first order, by at least :math:`1 - \\varepsilon` of what one along the gradient does.
    """

    evaluator: str
    stencil: str
    step_size: float
    low: float
    high: float
    error: float
    configured: float
    configured_error: float | None
    felt: bool
    reason: str
    samples: int = 0
    plain_error: float | None = None
    as_good: bool = False

    def with_errors(self, error: float, configured_error: float | None, samples: int) -> StepChoice:
        """The choice with the errors measured at both steps, and the configured one judged by them.

        Args:
            error: relative error at ``step_size``.
            configured_error: relative error at ``configured``.
            samples: directions behind both.
        """
        good = self.felt and configured_error is not None and configured_error <= max(AS_GOOD, 2 * error)
        return replace(self, error=error, configured_error=configured_error, samples=samples, as_good=good)


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
    own = next((p for p in points if p.step_size == configured), None)
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
        configured_error=own.error if own else None,
        felt=own is None or own.felt,
        reason=f"from {start:.1e} to {stop:.1e} the error stays below {limit:.1e}; the middle is safe on both "
        "sides, from noise below and from curvature above",
        plain_error=None if plain is None or evaluator == PLAIN else plain.points[middle].error,
    )
    return choice.with_errors(choice.error, choice.configured_error, sweep.samples)


def step_for_noise(
    swept: SweptSlopes, *, noise: float, evaluator: str, stencil: str, configured: float
) -> StepChoice | None:
    """The step at which noise and curvature together do least harm; None if no step tells a slope from noise.

    With noise of standard deviation :math:`\\sigma` in every loss, the mean squared error of a slope is

    .. math:: \\bigl(\\tfrac12 \\ell'' \\mu\\bigr)^2 + 2 (\\sigma/\\mu)^2 \\text{ (forward)}, \\qquad
        \\bigl(\\tfrac16 \\ell''' \\mu^2\\bigr)^2 + \\tfrac12 (\\sigma/\\mu)^2 \\text{ (central)},

    least at :math:`8^{1/4} (\\sigma/|\\ell''|)^{1/2}` and :math:`(3\\sigma/|\\ell'''|)^{1/3}`: Gill, Murray, Saunders
    & Wright, Computing forward-difference intervals for numerical optimization, SIAM J. Sci. Stat. Comput. 4, 1983;
    Moré & Wild, Estimating derivatives of noisy functions, ACM Trans. Math. Softw. 38, 2012. The derivatives are root
    mean squares over the directions of a sweep, at the smallest step where they rise above the noise.

    Args:
        swept: slopes, forward and central ones.
        noise: :math:`\\sigma`, above 0.
        evaluator: its slopes count.
        stencil: ``forward`` or ``central``; there is no formula for others.
        configured: the step size of the run.
    """
    if stencil not in FACTORS:
        return None
    order, lead, factor = FACTORS[stencil]
    steps, central = swept.steps, swept.values[evaluator, CENTRAL.name]
    size = slope_size(central, steps, noise)
    if size is None:
        return None
    if order == 2:
        bend = _second_derivative(swept.values[evaluator, FORWARD.name], central, steps, noise)
    else:
        bend = _third_derivative(central, steps, noise)

    def error(step: float) -> float:
        return math.hypot(lead * bend * step ** (order - 1), factor * noise / step) / size

    best = steps[-1]
    if bend > 0:
        best = min(best, 8**0.25 * math.sqrt(noise / bend) if order == 2 else (3 * noise / bend) ** (1 / 3))
    limit = max(2 * error(best), AS_GOOD)
    derivative = f"of about {bend:.1e}" if bend > 0 else "too small to be seen"
    end = ", the largest step that was tried" if best == steps[-1] else ""
    choice = StepChoice(
        evaluator=evaluator,
        stencil=stencil,
        step_size=best,
        low=_edge(error, best, limit, 0.5),
        high=min(_edge(error, best, limit, 2.0), steps[-1]),
        error=error(best),
        configured=configured,
        configured_error=error(configured),
        felt=True,
        reason=f"noise of {noise:.1e} in every loss, slopes of about {size:.1e} and derivatives of order {order} "
        f"{derivative} make the error least there{end}",
    )
    return choice.with_errors(choice.error, choice.configured_error, central.shape[1])


def repeats_for(choice: StepChoice) -> int:
    """Repeats of a query after which noise leaves an error of a tenth at the recommended step.

    The mean of ``n`` queries has noise :math:`\\sigma / \\sqrt n`; what curvature adds is not counted.
    """
    return max(1, math.ceil((choice.error / AS_GOOD) ** 2))


def slope_size(central: Tensor, steps: Sequence[float], noise: float) -> float | None:
    """Root mean square of the slopes, free of the share of noise, at the smallest step where they rise above it."""
    for row, step in zip(central, steps, strict=True):
        size, spread = _rms(row), math.sqrt(0.5) * noise / step
        if size is not None and size >= CLEAR / 2 * spread and size > 0:
            return math.sqrt(size**2 - spread**2)
    return None


def _second_derivative(forward: Tensor, central: Tensor, steps: Sequence[float], noise: float) -> float:
    """Root mean square of the second derivatives; 0 if none rises above the noise."""
    for one_sided, two_sided, step in zip(forward, central, steps, strict=True):
        difference = _rms(2 * step * (one_sided - two_sided))
        if difference is not None and difference >= CLEAR * math.sqrt(6) * noise:
            return difference / step**2
    return 0.0


def _third_derivative(central: Tensor, steps: Sequence[float], noise: float) -> float:
    """Root mean square of the third derivatives; 0 if none rises above the noise."""
    for i in range(len(steps) - 1):
        inner, outer = steps[i], steps[i + 1]
        difference = _rms(central[i + 1] - central[i])
        if difference is not None and difference >= CLEAR * noise * math.sqrt(0.5 * (inner**-2 + outer**-2)):
            return 6 * difference / (outer**2 - inner**2)
    return 0.0


def _rms(values: Tensor) -> float | None:
    size = float(values.square().mean().sqrt())
    return size if math.isfinite(size) else None


def _edge(error: Callable[[float], float], best: float, limit: float, factor: float) -> float:
    """The last of the steps ``best * factor^k`` with an error within the limit, of 40."""
    step = best
    for _ in range(40):
        if error(step * factor) > limit:
            break
        step *= factor
    return step
