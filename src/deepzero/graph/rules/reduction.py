"""Sums and means, which are linear and act on the difference itself; and products.

A full sum accumulates in float64. A channel difference stays one if its axis is not among the reduced dimensions.

Legend: p perturbations; stacked: a base value and its differences, with a dimension of perturbations in front of the
latter, which broadcast; kept: the same with length 1 along what is reduced; rest: without what is reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, difference_dtype, entries
from deepzero.graph.rules.base import map_delta, normal_dim, rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten

Reducer = Callable[[Tensor, Tensor, list[int]], Tensor]
"""From base values, differences and the reduced dimensions (counted from the back) to the change, dimensions kept."""


def reduced_dims(dim: Sequence[int] | int | None, ndim: int) -> list[int]:
    """The reduced dimensions, sorted; none or an empty list stands for all."""
    listed = [dim] if isinstance(dim, int) else list(dim or range(ndim))
    return sorted(normal_dim(d, ndim) for d in listed) if ndim else []


def reduced_shape(shape: torch.Size, dims: Sequence[int], keepdim: bool) -> torch.Size:
    """The shape of the result."""
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
    positions = [i if d not in dims else i * 0 for d, i in enumerate(difference.positions())]
    kept = reduced_shape(difference.shape, dims, True)
    index = torch.zeros_like(difference.indices)
    for position, size in zip(positions, kept, strict=True):
        index = index * size + position
    return OneHot(index, difference.values, reduced_shape(difference.shape, dims, keepdim))


def summed(delta: Num[Tensor, "*shape"], dims: list[int]) -> Num[Tensor, "*kept"]:
    """The sum along ``dims``, which are kept."""
    return delta.sum(dims, keepdim=True) if dims else delta


@rule(aten.mean.default)
def mean_all(call: Call, x: Operand, *, dtype: torch.dtype | None = None) -> Outcome:
    """``sum d / numel`` in float64."""
    total = _total(x)
    return Dense((total if total.is_complex() else total.double()) / x.base.numel())


@rule(aten.sum.default)
def sum_all(call: Call, x: Operand, *, dtype: torch.dtype | None = None) -> Outcome:
    """``sum d`` in float64; of integers in integers."""
    return fallback(call, x, dtype=dtype) if _truncates(call, x) else Dense(_total(x))


def _truncates(call: Call, x: Operand) -> bool:
    """True for a sum of floating-point numbers in integers, each of them truncated first."""
    base = call.output.base
    return not (base.is_floating_point() or base.is_complex()) and (x.base.is_floating_point() or x.base.is_complex())


def _total(x: Operand) -> Num[Tensor, " p"]:
    """Sum of the entries that differ: the rest of a channel or one-hot difference is zero."""
    difference = x.difference
    assert difference is not None
    values = entries(difference)
    return values.sum(1, dtype=_wide(values.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


@rule(aten.sum.dim_IntList)
def sum_dim(
    call: Call, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Outcome:
    """The sum of the difference."""
    if _truncates(call, x):
        return fallback(call, x, dim, keepdim, dtype=dtype)
    return _sum_along(call, x, reduced_dims(dim, x.base.dim()), keepdim)


@rule(aten.mean.dim)
def mean_dim(
    call: Call, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Outcome:
    """The mean of the difference."""
    dims = reduced_dims(dim, x.base.dim())
    size = math.prod(x.base.shape[d] for d in dims)
    return map_delta(_sum_along(call, x, dims, keepdim), lambda d: d / size)


def _sum_along(call: Call, x: Operand, dims: list[int], keepdim: bool) -> Difference:
    dtype = difference_dtype(call.output.base.dtype)
    difference = x.difference
    if isinstance(difference, OneHot):
        return map_delta(reduced_one_hot(difference, dims, keepdim), lambda d: d.to(dtype))
    if isinstance(difference, Channel) and difference.axis in dims:
        out = summed(difference.delta.to(dtype).unsqueeze(difference.axis + 1), [d - x.base.dim() for d in dims])
        return Dense(out if keepdim else dropped(out, dims))
    return along(x, dims, keepdim, lambda _, d, where: summed(d.to(dtype), where))


@rule(aten.cumsum.default)
def cumsum(call: Call, x: Operand, dim: int, *, dtype: torch.dtype | None = None) -> Outcome:
    """The running sum of the difference."""
    if _truncates(call, x):
        return fallback(call, x, dim, dtype=dtype)
    difference, wide = x.difference, difference_dtype(call.output.base.dtype)
    assert difference is not None
    if x.base.dim() == 0:
        return map_delta(difference, lambda d: d.to(wide))
    axis = normal_dim(dim, x.base.dim())
    if isinstance(difference, Channel) and difference.axis != axis:
        place = axis + 1 if axis < difference.axis else axis
        return difference.with_delta(difference.delta.cumsum(place, dtype=wide))
    return Dense(difference.dense().cumsum(axis + 1, dtype=wide))


@rule(aten.prod.dim_int, aten.prod.default)
def prod(call: Call, x: Operand, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Outcome:
    """By halves: a product of two halves P and Q changes by ``dP (Q + dQ) + P dQ``."""
    if _truncates(call, x):
        return fallback(call, x, *(() if dim is None else (dim, keepdim)), dtype=dtype)
    wide = difference_dtype(call.output.base.dtype)
    return along(x, reduced_dims(dim, x.base.dim()), keepdim, lambda z, d, dims: _product(z.to(wide), d.to(wide), dims))


def _product(z: Num[Tensor, "*#stacked"], d: Num[Tensor, "*#stacked"], dims: list[int]) -> Num[Tensor, "*kept"]:
    """Change of the product along ``dims``, of halves again and again."""
    for dim in dims:
        while d.shape[dim] > 1:
            half, odd = divmod(d.shape[dim], 2)
            z1, z2, z_last = torch.split(z, [half, half, odd], dim)
            d1, d2, d_last = torch.split(d, [half, half, odd], dim)
            d = torch.cat([d1 * (z2 + d2) + z1 * d2, d_last], dim)
            z = torch.cat([z1 * z2, z_last], dim)
    return d.sum(dims, keepdim=True) if any(d.shape[dim] == 0 for dim in dims) else d
