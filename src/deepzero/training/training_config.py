"""Settings of a training: epochs, optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deepzero import validation
from deepzero.errors import InvalidInputError


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


@dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, schedule, and the intervals of validation and checkpoints.

    Attributes:
        epochs: passes over the training split.
        learning_rate: peak learning rate, reached at the end of the warm-up.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: pulls every weight to 0, queried or not.
        warmup_epochs: length of the linear warm-up.
        schedule: of the learning rate after it: ``cosine`` to 0, ``linear`` to 0, ``constant``, or a tenth
            after each of the ``thirds`` or ``fifths`` of the steps.
        evaluate_every: epochs between two looks at the validation split.
        checkpoint_steps: steps between two checkpoints, None to go by the clock alone.
        checkpoint_minutes: minutes between two checkpoints.

    Raises:
        InvalidInputError: a value is out of its domain.
    """

    epochs: int = 50
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
    schedule: str = "cosine"
    evaluate_every: int = 1
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        validation.count("epochs", self.epochs)
        validation.positive("learning_rate", self.learning_rate, hint="0.1")
        validation.fraction("momentum", self.momentum)
        _not_negative("weight_decay", self.weight_decay)
        _not_negative("warmup_epochs", self.warmup_epochs)
        validation.choice("schedule", self.schedule, SCHEDULES)
        validation.count("evaluate_every", self.evaluate_every)
        if self.checkpoint_steps is not None:
            validation.count("checkpoint_steps", self.checkpoint_steps)
        validation.positive("checkpoint_minutes", self.checkpoint_minutes, hint="5")


def _not_negative(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"{name} must be a finite number of at least 0, got {value!r}")
