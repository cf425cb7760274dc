"""The step that noise and curvature ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from deepzero.doctor.records import StepChoice
from deepzero.doctor.sweep import AS_GOOD, Slopes, judged
from deepzero.stencils import CENTRAL, FORWARD

CLEAR = 10.0
"""A root mean square over directions says something if it is so many times its noise. (Moré and Wild, 2012, ask for 100
of a second difference, where a single one decides.)"""
FACTORS = {FORWARD.name: (2, 0.5, math.sqrt(2.0)), CENTRAL.name: (3, 1 / 6, math.sqrt(0.5))}
"""By stencil: the order of the derivative in its error, that derivative's factor, and the factor of the noise."""


def step_for_noise(
    slopes: Slopes, steps: Sequence[float], *, noise: float, evaluator: str, stencil: str, configured: float
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
        slopes: of the sweep, forward and central ones.
        steps: of the sweep, increasing.
        noise: :math:`\\sigma`, above 0.
        evaluator: whose slopes count.
        stencil: ``forward`` or ``central``; there is no formula for others.
        configured: the step that was asked about.
    """
    if stencil not in FACTORS:
        return None
    order, lead, factor = FACTORS[stencil]
    central = slopes[evaluator, CENTRAL.name]
    size = slope_size(central, steps, noise)
    if size is None:
        return None
    if order == 2:
        bend = _second_derivative(slopes[evaluator, FORWARD.name], central, steps, noise)
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
    return judged(choice, choice.error, choice.configured_error, central.shape[1])


def repeats_for(choice: StepChoice) -> int:
    """How often to repeat a query so that noise leaves an error of a tenth at the recommended step.

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
    for near, both, step in zip(forward, central, steps, strict=True):
        difference = _rms(2 * step * (near - both))
        if difference is not None and difference >= CLEAR * math.sqrt(6) * noise:
            return difference / step**2
    return 0.0


def _third_derivative(central: Tensor, steps: Sequence[float], noise: float) -> float:
    """Root mean square of the third derivatives; 0 if none rises above the noise."""
    for i in range(len(steps) - 1):
        near, far = steps[i], steps[i + 1]
        difference = _rms(central[i + 1] - central[i])
        if difference is not None and difference >= CLEAR * noise * math.sqrt(0.5 * (near**-2 + far**-2)):
            return 6 * difference / (far**2 - near**2)
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
