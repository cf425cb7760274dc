"""Evaluations of the objective with the same seed: do they agree, and if not, what does that do to slopes?"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from deepzero.errors import DeepZeroError, InvalidInputError
from deepzero.objective import Objective, parameters_of
from deepzero.stencils import Stencil

REPEATS = 4


@dataclass(frozen=True)
class Determinism:
    """Losses of evaluations with the same seed, and the effect of their noise on slopes.

    Attributes:
        loss: the loss at the current parameters; None if it is not finite.
        mode: ``train``, ``eval`` or ``mixed``; None for a black box.
        repeatable: True if evaluations with the same seed agree bitwise.
        noise: standard deviation of the loss over evaluations with the same seed.
        depends_on_seed: True if another seed gives another loss, as dropout does; harmless, since all queries of a step
            share one seed.
        slope_noise: standard deviation that ``noise`` causes in each slope at the configured step size.
        relative_slope_noise: the same in units of the root mean square of the slopes; None if that is 0 or
            drowns in the noise.
    """

    loss: float | None
    mode: str | None
    repeatable: bool
    noise: float
    depends_on_seed: bool
    slope_noise: float = 0.0
    relative_slope_noise: float | None = None


def check_determinism(
    objective: Objective, batch: tuple[Any, ...], *, seed: int, repeats: int = REPEATS
) -> Determinism:
    """Evaluate the objective a few times with one seed, and once with another."""
    parameters = parameters_of(objective)
    require_running(objective, batch, seed)
    losses = [float(objective.evaluate(parameters, batch, seed=seed).loss) for _ in range(repeats)]
    other = float(objective.evaluate(parameters, batch, seed=seed + 1).loss)
    finite = all(math.isfinite(loss) for loss in (*losses, other))
    repeatable = len({repr(loss) for loss in losses}) == 1
    return Determinism(
        loss=losses[0] if math.isfinite(losses[0]) else None,
        mode=mode_of(objective),
        repeatable=repeatable,
        noise=statistics.stdev(losses) if finite else 0.0,
        depends_on_seed=finite and repeatable and other != losses[0],
    )


def require_running(objective: Objective, batch: tuple[Any, ...], seed: int) -> None:
    """Raise an error that says what does not run, if the objective does not run at all."""
    try:
        objective.evaluate(parameters_of(objective), batch, seed=seed)
    except DeepZeroError:
        raise
    except Exception as error:
        message = " ".join(str(error).split()) or "no message"
        raise InvalidInputError(
            f"the loss cannot be evaluated on this batch: {type(error).__name__}: {message}; correct the batch, the "
            f"model or the loss"
        ) from error


def with_effect(found: Determinism, stencil: Stencil, step_size: float, slopes: Tensor | None) -> Determinism:
    """Add what the noise does to slopes that are ``slopes`` without it, as far as they are known.

    A slope is :math:`\\frac{1}{\\mu}\\sum_j w_j (\\ell_j - \\ell_0)`, so independent noise of standard deviation
    :math:`\\sigma` in each loss becomes :math:`\\frac{\\sigma}{\\mu}\\sqrt{\\sum_j w_j^2 + (\\sum_j w_j)^2}` in it.
    """
    factor = math.sqrt(sum(w * w for w in stencil.weights) + sum(stencil.weights) ** 2)
    noise = found.noise * factor / step_size
    signal = 0.0 if slopes is None else float(slopes.double().square().mean().sqrt())
    return replace(found, slope_noise=noise, relative_slope_noise=noise / signal if signal > 0 else None)


def mode_of(objective: Objective) -> str | None:
    """The mode of an objective's ``model``: ``train``, ``eval``, or ``mixed``; None if it has none."""
    modes = {module.training for module in modules_of(objective)}
    if not modes:
        return None
    return "mixed" if len(modes) > 1 else ("train" if modes.pop() else "eval")


def modules_of(objective: Objective) -> list[nn.Module]:
    """The modules of an objective's ``model``; none if it has no model, as a black box."""
    model = getattr(objective, "model", None)
    return list(model.modules()) if isinstance(model, nn.Module) else []
