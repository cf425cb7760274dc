"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """The factor on the peak learning rate at a step: linear from 1/warmup to 1, then a cosine to 0.

    .. math:: \\frac{t + 1}{W} \\;(t < W), \\qquad
        \\frac{1}{2}\\Bigl(1 + \\cos\\frac{\\pi (t - W)}{T - W}\\Bigr) \\;(W \\le t < T)

    Args:
        step: :math:`t`, from 0.
        warmup: :math:`W`, steps of warm-up; may be 0.
        total: :math:`T`, steps of the run.

    Example:
        >>> [round(warmup_cosine(t, warmup=2, total=6), 3) for t in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    return _after_warmup(step, warmup, total, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


def warmup_linear(step: int, *, warmup: int, total: int) -> float:
    """As :func:`warmup_cosine`, but with a line to 0 in place of the cosine.

    Example:
        >>> [warmup_linear(t, warmup=0, total=4) for t in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    return _after_warmup(step, warmup, total, lambda done: 1 - done)


def warmup_constant(step: int, *, warmup: int, total: int) -> float:
    """As :func:`warmup_cosine`, but constant after the warm-up.

    Example:
        >>> [warmup_constant(t, warmup=2, total=4) for t in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    return _after_warmup(step, warmup, total, lambda _: 1.0)


def warmup_tenths(step: int, *, warmup: int, total: int, parts: int) -> float:
    """As :func:`warmup_cosine`, but divided by ten after each of ``parts`` equal parts of what follows the warm-up.

    Example:
        >>> [f"{warmup_tenths(t, warmup=0, total=6, parts=3):g}" for t in range(6)]
        ['1', '1', '0.1', '0.1', '0.01', '0.01']
    """
    return _after_warmup(step, warmup, total, lambda done: 10.0 ** -min(parts - 1, math.floor(parts * done + 1e-9)))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": warmup_constant,
    "cosine": warmup_cosine,
    "fifths": partial(warmup_tenths, parts=5),
    "linear": warmup_linear,
    "thirds": partial(warmup_tenths, parts=3),
}
"""Name in a configuration -> factor on the peak learning rate."""


def learning_rate(optimizer: Optimizer, schedule: str, *, warmup: int, total: int) -> LambdaLR:
    """A schedule as torch's schedulers are, for one step after the other.

    Args:
        optimizer: its learning rate is the peak.
        schedule: a name of :data:`SCHEDULES`.
        warmup: steps of warm-up; the last step is never one of them.
        total: steps of the run.
    """
    factor = partial(SCHEDULES[schedule], warmup=min(warmup, total - 1), total=total)
    return LambdaLR(optimizer, factor)


def _after_warmup(step: int, warmup: int, total: int, decay: Callable[[float], float]) -> float:
    return (step + 1) / warmup if step < warmup else decay((step - warmup) / (total - warmup))
