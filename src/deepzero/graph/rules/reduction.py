"""Means and sums: linear, so they act on the difference itself. Full reductions accumulate in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, entries
from deepzero.graph.rules.base import normal_dim, rule

aten = torch.ops.aten


@rule(aten.mean.default)
def mean_all(call: Call, x: Operand, **_: Any) -> Outcome:
    """``sum d / numel`` in float64."""
    return Dense(_total(x) / x.base.numel())


@rule(aten.sum.default)
def sum_all(call: Call, x: Operand, **_: Any) -> Outcome:
    """``sum d`` in float64."""
    return Dense(_total(x))


def _total(x: Operand) -> Float64[Tensor, " p"]:
    """Sum of the entries that differ: the rest of a channel or one-hot difference is zero."""
    difference = x.difference
    assert difference is not None
    return entries(difference).sum(1, dtype=torch.float64)


@rule(aten.mean.dim)
def mean_dim(call: Call, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Outcome:
    """Mean along some dimensions; a channel stays a channel if it is not among them."""
    return _along(x, dim, keepdim, torch.mean)


@rule(aten.sum.dim_IntList)
def sum_dim(call: Call, x: Operand, dim: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Outcome:
    """Sum along some dimensions; a channel stays a channel if it is not among them."""
    return _along(x, dim, keepdim, torch.sum)


def _along(x: Operand, dim: Sequence[int] | None, keepdim: bool, reduce: Any) -> Outcome:
    difference = x.difference
    assert difference is not None
    ndim = x.base.dim()
    dims = sorted(normal_dim(d, ndim) for d in dim) if dim else list(range(ndim))
    if isinstance(difference, Channel) and difference.axis not in dims:
        axis = difference.axis
        with_axis = difference.delta.unsqueeze(axis + 1)
        out = reduce(with_axis, [d + 1 for d in dims], keepdim=keepdim)
        new_axis = axis if keepdim else axis - sum(d < axis for d in dims)
        sizes = [1 if d in dims else s for d, s in enumerate(x.base.shape) if keepdim or d not in dims]
        return Channel(new_axis, difference.channels, out.squeeze(new_axis + 1), torch.Size(sizes))
    return Dense(reduce(difference.dense(), [d + 1 for d in dims], keepdim=keepdim))
