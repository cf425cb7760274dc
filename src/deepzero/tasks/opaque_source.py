"""A gradient source around a black box: queries are those that the black box counts, and a guess is saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deepzero.opaque import Learned, Opaque
from deepzero.training.checkpoint_contents import (
    optimizer_tensors,
    optimizer_values,
    prefixed,
    restore_optimizer,
    selected,
    snapshot,
)
from deepzero.training.gradient_sources import GradientSource


class Asking:
    """A gradient source whose queries are those that the black box counts.

    Args:
        source: fills ``p.grad``.
        box: is asked.
        guess: learns from its answers.
    """

    def __init__(self, source: GradientSource, box: Opaque, guess: Learned | None = None) -> None:
        self._source, self._box, self._guess = source, box, guess
        self._values: Mapping[str, Any] | None = None

    @property
    def queries(self) -> int:
        """Answers of the black box so far."""
        return self._box.queries

    def backward(self, *batch: Any) -> Tensor:
        """As the source does it."""
        return self._source.backward(*batch)

    def set_epoch(self, epoch: int) -> None:
        """As the source does it."""
        self._source.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The source's, and the guess's numbers; the black box's counters are in the model's."""
        found = {"source": self._source.state_dict()}
        if self._guess is not None:
            values = optimizer_values(self._guess.optimizer)
            found["guess"] = {"places": self._guess.state_dict()["places"], "optimizer": values}
        return found

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._source.load_state_dict(values["source"])
        self._values = values.get("guess")

    def tensors(self) -> dict[str, Tensor]:
        """The guess's: weights, optimizer and memory."""
        if self._guess is None:
            return {}
        memory = self._guess.state_dict()["memory"]
        return {
            **prefixed("module", snapshot(self._guess.module)),
            **prefixed("optimizer", optimizer_tensors(self._guess.optimizer)),
            **prefixed("memory", {str(k): value.detach().cpu().clone() for k, value in enumerate(memory)}),
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned, after :meth:`load_state_dict`."""
        if self._guess is None or self._values is None:
            return
        memory = selected("memory", tensors)
        restore_optimizer(self._guess.optimizer, self._values["optimizer"], selected("optimizer", tensors))
        self._guess.load_state_dict(
            {
                "module": selected("module", tensors),
                "optimizer": self._guess.optimizer.state_dict(),
                "memory": [memory[str(k)] for k in range(len(memory))],
                "places": self._values["places"],
            }
        )
