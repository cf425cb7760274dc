"""The coordinates that are queried: sets of flat indices of parameters, and the schedules that choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.objective import Objective, parameters_of


class Coordinates(Mapping[str, Tensor]):
    """An immutable set of coordinates: parameter name -> sorted flat indices.

    A flat index counts the entries of a parameter in row-major order, whatever its memory format. Parameters that are
    not named have no coordinate in the set. ``shapes``, if known, are compared with the parameters' at use.

    Example:
        >>> import torch
        >>> chosen = Coordinates.from_masks({"weight": torch.tensor([[True, False], [True, True]])})
        >>> chosen["weight"], chosen.count
        (tensor([0, 2, 3]), 3)
    """

    def __init__(
        self, indices: Mapping[str, Int64[Tensor, " _"]], *, shapes: Mapping[str, torch.Size] | None = None
    ) -> None:
        self._indices = {name: _checked(name, index) for name, index in indices.items() if index.numel()}
        self._shapes = dict(shapes or {})

    @classmethod
    def dense(cls, shapes: Mapping[str, torch.Size]) -> Coordinates:
        """Every coordinate of every parameter."""
        return cls({name: torch.arange(shape.numel()) for name, shape in shapes.items()}, shapes=shapes)

    @classmethod
    def from_masks(cls, masks: Mapping[str, Tensor]) -> Coordinates:
        """The coordinates where a boolean mask is true."""
        for name, mask in masks.items():
            _require_mask(name, mask)
        indices = {name: mask.reshape(-1).nonzero().squeeze(1) for name, mask in masks.items()}
        return cls(indices, shapes={name: mask.shape for name, mask in masks.items()})

    @property
    def count(self) -> int:
        """Number of coordinates."""
        return sum(index.numel() for index in self._indices.values())

    @property
    def names(self) -> list[str]:
        """Names of the parameters with at least one coordinate."""
        return list(self._indices)

    def masks(self, shapes: Mapping[str, torch.Size]) -> dict[str, Bool[Tensor, " ..."]]:
        """Boolean masks in the given shapes."""
        masks = {}
        for name, shape in shapes.items():
            mask = torch.zeros(shape.numel(), dtype=torch.bool)
            if name in self._indices:
                mask[self._indices[name]] = True
            masks[name] = mask.reshape(shape)
        return masks

    def shares(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of each parameter of two or more dimensions that is in the set; empty if all shares are 1.

        Example:
            >>> chosen = Coordinates({"weight": torch.tensor([0, 3])})
            >>> chosen.shares({"weight": torch.zeros(2, 4), "bias": torch.zeros(2), "head": torch.zeros(1, 2)})
            {'weight': 0.25, 'head': 0.0}
        """
        none, matrices = torch.empty(0), {n: p for n, p in parameters.items() if p.dim() > 1 and p.numel() > 0}
        shares = {name: self._indices.get(name, none).numel() / p.numel() for name, p in matrices.items()}
        return shares if any(share < 1 for share in shares.values()) else {}

    def check_fits(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise unless every coordinate exists in ``parameters``."""
        for name, index in self._indices.items():
            if name not in parameters:
                known = ", ".join(list(parameters)[:5])
                raise InvalidInputError(
                    f"coordinates name {name!r}, which is not a trainable parameter; expected names as in "
                    f"model.named_parameters(): {known}, ..."
                )
            shape = self._shapes.get(name, parameters[name].shape)
            if shape != parameters[name].shape:
                raise InvalidInputError(
                    f"mask of {name} must have shape {tuple(parameters[name].shape)}, got {tuple(shape)}"
                )
            if int(index[-1]) >= parameters[name].numel():
                raise InvalidInputError(
                    f"coordinates of {name} reach index {int(index[-1])}, but it has {parameters[name].numel()} entries"
                )

    def __getitem__(self, name: str) -> Int64[Tensor, " n"]:
        return self._indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"Coordinates({self.count} in {len(self)} parameters)"


def _require_mask(name: str, mask: Any) -> None:
    if not isinstance(mask, Tensor):
        ratio = isinstance(mask, (int, float)) and not isinstance(mask, bool)
        way = "; for a share of each layer use dz.DynamicRatios(ratios)" if ratio else ""
        raise InvalidInputError(f"mask of {name} must be a bool tensor, got {type(mask).__name__}{way}")
    if mask.dtype != torch.bool:
        raise InvalidInputError(f"mask of {name} must be a bool tensor, got {mask.dtype}; try mask != 0")


def _checked(name: str, index: Int64[Tensor, " n"]) -> Int64[Tensor, " distinct"]:
    if index.dtype != torch.int64 or index.dim() != 1:
        raise InvalidInputError(
            f"coordinates of {name} must be a 1-D int64 tensor of flat indices, got {index.dtype} of shape "
            f"{tuple(index.shape)}"
        )
    rising = bool((index[1:] > index[:-1]).all())
    index = index.cpu().clone() if rising else torch.unique(index.cpu())  # what is in order already is not sorted
    if int(index[0]) < 0:
        raise InvalidInputError(f"coordinates of {name} must not be negative, got {int(index[0])}")
    return index


@dataclass(frozen=True)
class StepContext:
    """The information from which a schedule chooses the coordinates of a step.

    Attributes:
        step: number of estimates made before this one.
        epoch: the epoch last announced with ``estimator.set_epoch``.
        objective: the objective under its current parameters.
        batch: the arguments of this estimate.
        scales: step size of each parameter in units of the estimate's; 1 where a name is missing.
        step_size: the estimate's step size; 0 where no estimate asks.
    """

    step: int
    epoch: int
    objective: Objective
    batch: tuple[Any, ...]
    scales: Mapping[str, float] = field(default_factory=dict)
    step_size: float = 0.0


@runtime_checkable
class CoordinateSchedule(Protocol):
    """Chooses the coordinates of each step."""

    def coordinates(self, context: StepContext) -> Coordinates:
        """The coordinates to query at this step."""
        ...


@dataclass(frozen=True)
class Always:
    """The same coordinates at every step (the paper's M2 when they come from a pruning mask)."""

    chosen: Coordinates

    def coordinates(self, context: StepContext) -> Coordinates:
        """The fixed set."""
        return self.chosen


@dataclass(frozen=True)
class AllCoordinates:
    """Every coordinate of every trainable parameter at every step."""

    def coordinates(self, context: StepContext) -> Coordinates:
        """All coordinates of the objective."""
        return Coordinates.dense({name: value.shape for name, value in parameters_of(context.objective).items()})


Dense = AllCoordinates
"""The same by its earlier name, for programs that import it."""


def as_schedule(sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None) -> CoordinateSchedule:
    """A schedule from whatever a user may pass as ``sparsity``: None, coordinates, boolean masks or a schedule."""
    if sparsity is None:
        return AllCoordinates()
    if isinstance(sparsity, Coordinates):
        return Always(sparsity)
    if isinstance(sparsity, type):
        raise InvalidInputError(
            f"sparsity is the class {sparsity.__name__}; make a schedule of it, such as dz.DynamicRatios(ratios)"
        )
    if isinstance(sparsity, CoordinateSchedule):
        return sparsity
    if isinstance(sparsity, Mapping):
        chosen = Coordinates.from_masks(sparsity)
        if not chosen.count:
            raise InvalidInputError(
                "the masks of sparsity choose no coordinate, and nothing is estimated; give it at least one coordinate"
            )
        return Always(chosen)
    raise InvalidInputError(
        f"sparsity must be None, Coordinates, a dict of bool masks or a schedule such as dz.DynamicRatios(ratios), "
        f"got {type(sparsity).__name__}; for a plain sparsity make ratios first: dz.sparsity.uniform_ratios(model, 0.9)"
    )
