"""What the training loop can be told: a frozen, checked record."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.training.schedule import SCHEDULES


@dataclass(frozen=True)
class TrainingConfig:
    """Optimizer, schedule, and how often to look and to save.

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
