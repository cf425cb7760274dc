"""Coordinate directions: CGE, the paper's eq. (1) right and (Sparse-CGE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext
from deepzero.objective import Parameters


@dataclass(frozen=True, slots=True)
class CoordinateDisplacement:
    """The unit vector of one coordinate.

    Attributes:
        name: parameter.
        index: flat index in it (row-major).

    Example:
        >>> CoordinateDisplacement("w", 1).apply({"w": torch.zeros(3)}, 0.5)
        {'w': tensor([0.0000, 0.5000, 0.0000])}
    """

    name: str
    index: int

    def apply(self, parameters: Parameters, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t e`."""
        moved = parameters[self.name].clone(memory_format=torch.contiguous_format)
        moved.view(-1)[self.index] += offset
        return {**parameters, self.name: moved}


class CoordinatePerturbations:
    """Unit vectors :math:`e_i` for :math:`i` in a set of coordinates, in the order of the set.

    The estimate is :math:`\\hat\\nabla\\ell = \\sum_{i \\in S} s_i e_i` with slopes :math:`s_i`, and 0 outside.
    """

    def __init__(self, coordinates: Coordinates, parameters: Parameters) -> None:
        coordinates.check_fits(parameters)
        self.coordinates = coordinates
        self._like: Mapping[str, Tensor] = parameters
        self._starts: dict[str, int] = {}
        total = 0
        for name in coordinates:
            self._starts[name] = total
            total += coordinates[name].numel()
        self._count = total

    def __len__(self) -> int:
        return self._count

    def start(self, name: str) -> int:
        """Position of the first direction of parameter ``name``."""
        return self._starts[name]

    def locate(self, k: int) -> tuple[str, int]:
        """Parameter name and flat index of direction ``k``."""
        name = next(n for n in reversed(self.coordinates.names) if self._starts[n] <= k)
        return name, int(self.coordinates[name][k - self._starts[name]])

    def displacement(self, k: int) -> CoordinateDisplacement:
        """:math:`e_k` as name and index."""
        return CoordinateDisplacement(*self.locate(k))

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t e_k`."""
        return self.displacement(k).apply(parameters, offset)

    def combine(self, slopes: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Scatter the slopes; each coordinate has one, so nothing is accumulated and ``dtype`` has no effect."""
        gradients = {}
        for name, like in self._like.items():
            gradient = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
            if name in self.coordinates:
                index, start = self.coordinates[name].to(like.device), self._starts[name]
                values = slopes[start : start + index.numel()].to(like.device, like.dtype)
                gradient.view(-1)[index] = values
            gradients[name] = gradient
        return gradients

    def describe(self, k: int) -> str:
        """For example ``conv1.weight[17]``."""
        name, index = self.locate(k)
        return f"{name}[{index}]"


@dataclass(frozen=True)
class CoordinateProbes:
    """Coordinate directions over the set that a schedule chooses."""

    schedule: CoordinateSchedule

    def draw(self, context: StepContext) -> CoordinatePerturbations:
        """One direction for each coordinate chosen for this step."""
        return CoordinatePerturbations(self.schedule.coordinates(context), context.objective.parameters())

    def state(self) -> dict[str, object]:
        """The kind of probe."""
        return {"probes": "coordinate"}
