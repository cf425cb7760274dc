"""Callbacks, by which a user adds to the training loop; early stopping is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.training.divergence import in_monitored
from deepzero.training.evaluation import lower_is_better

if TYPE_CHECKING:
    from deepzero.training.trainer import Trainer

Record = Mapping[str, Any]


class Callback:
    """Receives every record of a run; may end the run by ``trainer.stop(why)``.

    Records are those of ``metrics.jsonl``: a ``kind`` (``step`` or ``epoch``), ``step``, ``epoch``, ``queries``,
    ``seconds``, and the numbers of that kind. A plain function of ``(trainer, record)`` is a callback, too; a class is
    for one that must remember something from checkpoint to checkpoint.

    Example:
        >>> class Target(Callback):
        ...     def on_record(self, trainer, record):
        ...         if record.get("validation_accuracy", 0.0) >= 0.9:
        ...             trainer.stop("the accuracy is reached")
    """

    def on_record(self, trainer: Trainer, record: Record) -> None:
        """A step or an epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, as JSON-able values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class EarlyStopping(Callback):
    """Ends a run whose validation no longer improves; the best weights are the result.

    Args:
        monitor: name of a number of the epochs' records.
        patience: looks at the validation data without improvement after which the run ends.
        min_delta: change above which a number counts as improved.
        mode: ``min`` if lower is better, ``max`` if higher is, ``auto`` by the name (losses and errors are to fall).

    Raises:
        InvalidInputError: an argument is out of its domain.

    Example:
        >>> stopping = EarlyStopping(patience=3)
        >>> stopping.monitor, stopping.mode
        ('validation_loss', 'min')
    """

    def __init__(
        self, monitor: str = "validation_loss", *, patience: int = 5, min_delta: float = 0.0, mode: str = "auto"
    ) -> None:
        self.monitor = monitor
        self.patience = validation.count("patience", patience)
        self.mode = direction(mode, monitor)
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise InvalidInputError(f"min_delta must be a finite number of at least 0, got {min_delta!r}")
        self.min_delta = min_delta
        self.best: float | None = None
        self.waited = 0

    def on_record(self, trainer: Trainer, record: Record) -> None:
        """Compare an epoch's number with the best so far.

        Raises:
            InvalidInputError: there is no such number.
            NonFiniteLossError: it is NaN; the last good checkpoint is kept.
        """
        if record["kind"] != "epoch" or not any(name.startswith("validation_") for name in record):
            return
        value = monitored(record, self.monitor)
        if (cause := in_monitored(self.monitor, value)) is not None:
            raise trainer.diverged(cause)
        sign = 1.0 if self.mode == "max" else -1.0
        if self.best is None or sign * (value - self.best) > self.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.stop(f"{self.monitor} has not improved for {self.waited} looks (best {self.best:.6g})")

    def state_dict(self) -> dict[str, Any]:
        """The best number, and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.best, self.waited = state["best"], state["waited"]


def direction(mode: str, name: str) -> str:
    """``min`` or ``max`` for a number by this name.

    Raises:
        InvalidInputError: the mode is unknown.
    """
    if validation.choice("mode", mode, ("auto", "max", "min")) != "auto":
        return mode
    return "min" if lower_is_better(name) else "max"


def monitored(record: Record, name: str) -> float:
    """A number of an epoch's record.

    Raises:
        InvalidInputError: it has none by this name; the message lists those that it has.
    """
    if name not in record:
        there = ", ".join(key for key in record if key.startswith("validation_")) or "none; give validation=..."
        raise InvalidInputError(f"monitor={name!r} is no number of the validation; there are: {there}")
    return float(record[name])
