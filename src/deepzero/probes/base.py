"""The interface of a probe: it draws the directions of one step and turns their slopes into a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from deepzero.coordinates import StepContext
from deepzero.objective import Parameters


class Displacement(Protocol):
    """One direction in a few bytes: what travels to another process, in place of moved parameters.

    An implementation is a frozen dataclass of strings and numbers. Its ``repr`` identifies it.
    """

    def apply(self, parameters: Parameters, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t\\,p` as a new dict; tensors that the direction does not touch are shared."""
        ...


class Perturbations(Protocol):
    """The :math:`K` directions :math:`p_k` of one step."""

    def __len__(self) -> int:
        """Number of directions."""
        ...

    def displacement(self, k: int) -> Displacement:
        """Direction ``k``, ready to travel; its ``apply`` gives the bits of :meth:`displace`."""
        ...

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t\\,p_k` as a new dict; tensors that the direction does not touch are shared."""
        ...

    def taken(self, parameters: Parameters, offsets: Sequence[float]) -> Tensor:
        """Steps that :meth:`displace` really takes, ``[len(offsets), K]`` float64: :math:`\\theta + t` is rounded.

        Raises:
            InvalidInputError: a step vanishes in the rounding of a parameter.
        """
        ...

    def nominal(self, offsets: Sequence[float]) -> Tensor:
        """Steps as asked for, ``[len(offsets), K]`` float64: those of who never forms :math:`\\theta + t`."""
        ...

    def combine(self, slopes: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The gradient estimate from the slopes ``[K]``, accumulated in ``dtype``, then in the parameters' own."""
        ...

    def describe(self, k: int) -> str:
        """Direction ``k`` in words, for messages."""
        ...


class Probes(Protocol):
    """A rule that draws directions."""

    def draw(self, context: StepContext) -> Perturbations:
        """The directions of a step."""
        ...

    def state(self) -> dict[str, object]:
        """What identifies this rule, as JSON-able values (for checkpoints)."""
        ...
