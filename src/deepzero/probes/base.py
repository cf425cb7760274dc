"""The interface of a probe: it draws the directions of one step and turns their slopes into a gradient."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol, TypeGuard

import torch
from torch import Tensor

from deepzero.coordinates import Coordinates, StepContext
from deepzero.objective import Parameters


class Displacement(Protocol):
    """One direction in a few bytes: it travels to another process in place of moved parameters.

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


class CoordinateDirections(Perturbations, Protocol):
    """Unit vectors, each with the step size of its parameter.

    Attributes:
        along_coordinates: True: what says so promises unit vectors, and is queried as such.
    """

    along_coordinates: ClassVar[bool]

    @property
    def coordinates(self) -> Coordinates:
        """The coordinates, in the order of the directions."""
        ...

    def scale(self, name: str) -> float:
        """Step size of a parameter in units of the estimate's."""
        ...

    def taken(self, parameters: Parameters, offsets: Sequence[float], names: Collection[str] | None = None) -> Tensor:
        """As of any perturbations; the steps of parameters that are not among ``names``, if given, are nominal."""
        ...


class JointDirections(Perturbations, Protocol):
    """Directions over all parameters that can be given several at once, as random ones can."""

    def scale(self, name: str) -> float:
        """Step size of a parameter in units of the estimate's."""
        ...

    def stack(self, start: int, stop: int) -> dict[str, Tensor]:
        """Directions ``start`` to ``stop - 1``, stacked to ``[stop - start, *shape]`` per parameter."""
        ...


def are_coordinates(perturbations: Perturbations) -> TypeGuard[CoordinateDirections]:
    """True if the directions say that they are unit vectors; an attribute called ``coordinates`` says nothing."""
    return getattr(perturbations, "along_coordinates", False) is True


def are_joint(perturbations: Perturbations) -> TypeGuard[JointDirections]:
    """True if the directions go over all parameters and can be given several at once: ``stack`` and ``scale``."""
    return hasattr(perturbations, "stack") and hasattr(perturbations, "scale")


def coordinates_of(perturbations: Perturbations) -> Coordinates | None:
    """The coordinates whose unit vectors the directions are, in their order; None for directions of another kind."""
    return perturbations.coordinates if are_coordinates(perturbations) else None


class Probes(Protocol):
    """A rule that draws directions."""

    def draw(self, context: StepContext) -> Perturbations:
        """The directions of a step."""
        ...

    def state(self) -> dict[str, object]:
        """The identity of this rule, as JSON-able values (for checkpoints)."""
        ...
