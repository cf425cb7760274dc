"""Coordinate directions: CGE, the paper's eq. (1) right and (Sparse-CGE)."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext
from deepzero.errors import InvalidInputError
from deepzero.objective import Parameters, parameters_of


@dataclass(frozen=True, slots=True)
class CoordinateDisplacement:
    """The unit vector of one coordinate.

    Attributes:
        name: parameter.
        index: flat index in it (row-major).
        scale: its length, in units of the step size.

    Example:
        >>> CoordinateDisplacement("w", 1).apply({"w": torch.zeros(3)}, 0.5)
        {'w': tensor([0.0000, 0.5000, 0.0000])}
    """

    name: str
    index: int
    scale: float = 1.0

    def apply(self, parameters: Parameters, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t e`, in the memory format of the parameter."""
        moved = parameters[self.name].clone()
        moved[np.unravel_index(self.index, moved.shape)] += offset * self.scale
        return {**parameters, self.name: moved}


class CoordinatePerturbations:
    """Unit vectors :math:`e_i` for :math:`i` in a set of coordinates, in the order of the set.

    The estimate is :math:`\\hat\\nabla\\ell = \\sum_{i \\in S} s_i e_i` with slopes :math:`s_i`, and 0 outside.
    """

    along_coordinates: ClassVar[bool] = True
    """Every direction is a unit vector."""

    def __init__(
        self, coordinates: Coordinates, parameters: Parameters, scales: Mapping[str, float] | None = None
    ) -> None:
        coordinates.check_fits(parameters)
        self.coordinates = coordinates
        self.scales = dict(scales or {})
        self._like: Mapping[str, Tensor] = parameters
        self._starts: dict[str, int] = {}
        total = 0
        for name in coordinates:
            self._starts[name] = total
            total += coordinates[name].numel()
        self._names, self._first = list(self._starts), list(self._starts.values())
        self._count = total

    def __len__(self) -> int:
        return self._count

    def among(self, coordinates: Coordinates) -> CoordinatePerturbations:
        """The unit vectors of other coordinates of the same parameters, with the same scales."""
        return CoordinatePerturbations(coordinates, self._like, self.scales)

    def start(self, name: str) -> int:
        """Position of the first direction of parameter ``name``."""
        return self._starts[name]

    def locate(self, k: int) -> tuple[str, int]:
        """Parameter name and flat index of direction ``k``."""
        name = self._names[bisect.bisect_right(self._first, k) - 1]
        return name, int(self.coordinates[name][k - self._starts[name]])

    def displacement(self, k: int) -> CoordinateDisplacement:
        """:math:`e_k` as name and index."""
        name, index = self.locate(k)
        return CoordinateDisplacement(name, index, self.scale(name))

    def scale(self, name: str) -> float:
        """Step size of a parameter in units of the estimate's."""
        return self.scales.get(name, 1.0)

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t e_k`."""
        return self.displacement(k).apply(parameters, offset)

    def taken(self, parameters: Parameters, offsets: Sequence[float], names: Collection[str] | None = None) -> Tensor:
        """Steps that rounding leaves of :math:`\\theta_i + t`, ``[len(offsets), K]`` float64.

        Those of parameters that are not among ``names``, if given, are the steps asked for.
        """
        rows = []
        for offset in offsets:
            parts = [torch.zeros(0, dtype=torch.float64)]
            for name, index in self.coordinates.items():
                if names is not None and name not in names:
                    parts.append(torch.full((index.numel(),), offset * self.scale(name), dtype=torch.float64))
                    continue
                entries = parameters[name].reshape(-1)[index.to(parameters[name].device)]
                step = (entries + offset * self.scale(name)).double() - entries.double()
                self._require_steps(name, index, entries, step, offset * self.scale(name))
                parts.append(step.cpu())
            rows.append(torch.cat(parts))
        return torch.stack(rows)

    def _require_steps(self, name: str, index: Tensor, entries: Tensor, step: Tensor, nominal: float) -> None:
        lost = (step == 0) & entries.isfinite()
        if bool(lost.any()):
            at = int(lost.nonzero()[0])
            value = float(entries[at])
            spacing = torch.finfo(entries.dtype).eps * abs(value)
            raise InvalidInputError(
                f"a step of {abs(nominal):g} vanishes in {name}[{int(index[at])}] = {value:g}, a {entries.dtype} whose "
                f"neighbours are {spacing:g} "
                f'away; give step_size={spacing * 16:g} or more, step_size={{"relative": 1e-3}}, step_size="auto", or '
                f"float64 values"
            )

    def nominal(self, offsets: Sequence[float]) -> Tensor:
        """Steps as asked for, ``[len(offsets), K]`` float64."""
        parts = [
            torch.full((index.numel(),), self.scale(name), dtype=torch.float64)
            for name, index in self.coordinates.items()
        ]
        scales = torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
        return torch.tensor(list(offsets), dtype=torch.float64).unsqueeze(1) * scales

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

    along_coordinates: ClassVar[bool] = True
    """Every direction is a unit vector."""

    def draw(self, context: StepContext) -> CoordinatePerturbations:
        """One direction for each coordinate chosen for this step."""
        chosen = self.schedule.coordinates(context)
        return CoordinatePerturbations(chosen, parameters_of(context.objective), context.scales)

    def state(self) -> dict[str, object]:
        """The kind of probe."""
        return {"probes": "coordinate"}
