"""What reductions along dimensions share: which dimensions, and on which entries of a difference they act."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from deepzero.graph.calls import Operand
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.rules.base import normal_dim

Reducer = Callable[[Tensor, Tensor, list[int]], Tensor]
"""From base values, differences and the reduced dimensions (counted from the back) to the change, dimensions kept."""


def reduced_dims(dim: Sequence[int] | int | None, ndim: int) -> list[int]:
    """The reduced dimensions, sorted; none or an empty list stands for all."""
    listed = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    return sorted(normal_dim(d, ndim) for d in listed) if ndim else []


def reduced_shape(shape: torch.Size, dims: Sequence[int], keepdim: bool) -> torch.Size:
    """The shape that is left."""
    return torch.Size(1 if d in dims else s for d, s in enumerate(shape) if keepdim or d not in dims)


def along(x: Operand, dims: list[int], keepdim: bool, reduce: Reducer) -> Difference:
    """``reduce`` along ``dims`` on the entries that differ."""
    difference, ndim = x.difference, x.base.dim()
    assert difference is not None
    shape = reduced_shape(x.base.shape, dims, keepdim)
    behind = [d - ndim for d in dims]
    if isinstance(difference, Channel) and difference.axis not in dims:
        axis = difference.axis
        base, delta = difference.of(x.base).unsqueeze(axis + 1), difference.delta.unsqueeze(axis + 1)
        out = reduce(base, delta, behind).squeeze(axis + 1)
        rest = [d if d < axis else d - 1 for d in dims]
        new_axis = axis if keepdim else axis - sum(d < axis for d in dims)
        return Channel(new_axis, difference.channels, out if keepdim else dropped(out, rest), shape)
    out = reduce(x.base, difference.dense(), behind)
    return Dense(out if keepdim else dropped(out, dims))


def dropped(stacked: Shaped[Tensor, " p *kept"], dims: Sequence[int]) -> Shaped[Tensor, " p *rest"]:
    """A stack without the reduced dimensions."""
    return stacked.squeeze([d + 1 for d in dims]) if dims else stacked


def reduced_one_hot(difference: OneHot, dims: list[int], keepdim: bool) -> OneHot:
    """The one-hot difference of a sum: the same values where the entries fall."""
    left = [i if d not in dims else i * 0 for d, i in enumerate(difference.positions())]
    kept = reduced_shape(difference.shape, dims, True)
    index = torch.zeros_like(difference.indices)
    for position, size in zip(left, kept, strict=True):
        index = index * size + position
    return OneHot(index, difference.values, reduced_shape(difference.shape, dims, keepdim))
