"""Gradient sources around a black box: their queries are the calls of the black box."""

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
from deepzero.training.gradient_sources import Autograd, GradientSource


class BlackBoxSource:
    """A gradient source whose queries are those that the black box counts.

    Args:
        source: fills ``p.grad``.
        box: counts its queries.
        guess: learns from the answers of the box, and is saved with the source.
    """

    def __init__(self, source: GradientSource, box: Opaque, guess: Learned | None = None) -> None:
        self._source, self._box, self._guess = source, box, guess
        self._values: Mapping[str, Any] | None = None

    @property
    def queries(self) -> int:
        """Queries of the black box so far."""
        return self._box.queries

    def backward(self, *batch: Any) -> Tensor:
        """Delegate to the source."""
        return self._source.backward(*batch)

    def set_epoch(self, epoch: int) -> None:
        """Delegate to the source."""
        self._source.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """State of the source, and numbers of the guess; the counters of the black box are in the model's state."""
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
        """Weights, optimizer and memory of the guess."""
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


class CountedCalls:
    """A gradient source that differentiates through the black box, with the same number of calls in every step.

    Args:
        source: fills ``p.grad``.
        before: calls before the first step.
        each: calls of a step.
    """

    def __init__(self, source: Autograd, *, before: int, each: int) -> None:
        self._source, self._before, self._each = source, before, each

    @property
    def queries(self) -> int:
        """Calls of the black box so far."""
        return self._before + self._each * self._source.queries

    def backward(self, *batch: Any) -> Tensor:
        """Delegate to the source."""
        return self._source.backward(*batch)

    def set_epoch(self, epoch: int) -> None:
        """Delegate to the source."""
        self._source.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Delegate to the source."""
        return self._source.state_dict()

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Delegate to the source."""
        self._source.load_state_dict(values)
