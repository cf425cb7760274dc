"""Operations that only move entries about: views, slices, padding, concatenation. Linear, so they act on differences.

A channel difference stays one wherever the operation leaves its axis alone; elsewhere it becomes dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.rules.base import linear_in_each, normal_dim, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.pointwise import broadcast

aten = torch.ops.aten

SHAPE_ONLY = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.sym_size.int,
    aten._assert_tensor_metadata.default,
}
"""Operations whose result does not depend on the values of their inputs: no difference passes them."""


def with_axis(difference: Channel) -> Tensor:
    """``[P, *shape]`` with length 1 along the channel's axis."""
    return difference.delta.unsqueeze(difference.axis + 1)


def as_channel(difference: Channel, stacked: Tensor, axis: int, shape: torch.Size) -> Channel:
    """A channel from a stacked tensor with length 1 along ``axis``."""
    return Channel(axis, difference.channels, stacked.squeeze(axis + 1), shape)


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int)
def view(call: Call, x: Operand, *_: Any) -> Outcome:
    """Another shape for the same entries, row-major."""
    return reshaped(x.difference, call.output.base.shape)


def reshaped(difference: Difference | None, shape: torch.Size) -> Difference:
    """A difference in another shape of as many entries."""
    assert difference is not None
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, difference.values, shape)
    if isinstance(difference, Channel):
        old, axis = difference.shape, difference.axis
        for new_axis, size in enumerate(shape):
            if size == old[axis] and math.prod(shape[:new_axis]) == math.prod(old[:axis]):
                rest = (*shape[:new_axis], *shape[new_axis + 1 :])
                return Channel(new_axis, difference.channels, difference.delta.reshape(-1, *rest), shape)
    return Dense(difference.dense().reshape(difference.count, *shape))


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default)
def squeeze(call: Call, x: Operand, *_: Any) -> Outcome:
    """Dimensions of length 1 come or go: a view."""
    return reshaped(x.difference, call.output.base.shape)


@rule(aten.permute.default)
def permute(call: Call, x: Operand, dims: Sequence[int]) -> Outcome:
    """Dimensions in another order."""
    difference = x.difference
    assert difference is not None
    order = [normal_dim(d, x.base.dim()) for d in dims]
    shape = call.output.base.shape
    stacked_order = [0, *(d + 1 for d in order)]
    if isinstance(difference, Channel):
        return as_channel(difference, with_axis(difference).permute(stacked_order), order.index(difference.axis), shape)
    if isinstance(difference, OneHot) and len(order) == 2 and order == [1, 0]:
        rows, columns = difference.positions()
        return OneHot(columns * shape[1] + rows, difference.values, shape)
    return Dense(difference.dense().permute(stacked_order))


@rule(aten.transpose.int)
def transpose(call: Call, x: Operand, first: int, second: int) -> Outcome:
    """Two dimensions exchanged."""
    order = list(range(x.base.dim()))
    a, b = normal_dim(first, len(order)), normal_dim(second, len(order))
    order[a], order[b] = order[b], order[a]
    return permute(call, x, order)


@rule(aten.t.default)
def t(call: Call, x: Operand) -> Outcome:
    """A matrix transposed."""
    return permute(call, x, list(range(x.base.dim()))[::-1])


@rule(aten.slice.Tensor)
def slice_rule(
    call: Call, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Outcome:
    """``x[start:end:step]`` along a dimension."""
    difference = x.difference
    assert difference is not None
    axis = normal_dim(dim, x.base.dim())
    if isinstance(difference, Channel) and difference.axis != axis:
        out = call.node.target(with_axis(difference), axis + 1, start, end, step)
        return as_channel(difference, out, difference.axis, call.output.base.shape)
    return Dense(call.node.target(difference.dense(), axis + 1, start, end, step))


@rule(aten.select.int)
def select(call: Call, x: Operand, dim: int, index: int) -> Outcome:
    """One entry along a dimension."""
    difference = x.difference
    assert difference is not None
    axis = normal_dim(dim, x.base.dim())
    if isinstance(difference, Channel) and difference.axis != axis:
        out = with_axis(difference).select(axis + 1, index)
        return as_channel(difference, out, difference.axis - (axis < difference.axis), call.output.base.shape)
    return Dense(difference.dense().select(axis + 1, index))


@rule(aten.expand.default)
def expand(call: Call, x: Operand, *_: Any, **__: Any) -> Outcome:
    """Broadcast to a shape."""
    assert x.difference is not None
    return broadcast(x.difference, call.output.base.shape)


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(call: Call, x: Operand, widths: Sequence[int], *mode_and_value: Any) -> Outcome:
    """Padding; a constant border does not differ, so the difference is padded with zeros."""
    difference = x.difference
    assert difference is not None
    mode = mode_and_value[0] if mode_and_value and isinstance(mode_and_value[0], str) else "constant"
    shape = call.output.base.shape
    if mode != "constant":
        return Dense(torch.func.vmap(lambda d: F.pad(d, tuple(widths), mode=mode))(difference.dense()))
    if isinstance(difference, Channel):
        position = 2 * (x.base.dim() - 1 - difference.axis)
        low, high = (widths[position], widths[position + 1]) if position < len(widths) else (0, 0)
        if low >= 0 and high >= 0:
            rest = [0 if i in (position, position + 1) else w for i, w in enumerate(widths)]
            out = F.pad(with_axis(difference), rest)
            return Channel(difference.axis, difference.channels + low, out.squeeze(difference.axis + 1), shape)
    return Dense(F.pad(difference.dense(), tuple(widths)))


@rule(aten.cat.default)
def cat(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Outcome:
    """Concatenation."""
    axis = normal_dim(dim, call.output.base.dim())
    differing = [o for o in tensors if o.difference is not None]
    first = differing[0].difference
    if len(differing) == 1 and isinstance(first, Channel) and first.axis == axis:
        before = sum(o.base.shape[axis] for o in tensors[: tensors.index(differing[0])])
        return Channel(axis, first.channels + before, first.delta, call.output.base.shape)
    channels = [o.difference for o in differing]
    if isinstance(first, Channel) and all(isinstance(c, Channel) and _together(first, c, axis) for c in channels):
        parts = [_part(o, first, axis) for o in tensors]
        return as_channel(first, torch.cat(parts, axis + 1), first.axis, call.output.base.shape)
    return Dense(torch.cat(_stacked(tensors), axis + 1))


def _together(first: Channel, other: Channel, axis: int) -> bool:
    same = first.axis == other.axis != axis and first.shape[first.axis] == other.shape[other.axis]
    return same and torch.equal(first.channels, other.channels)


def _part(operand: Operand, first: Channel, axis: int) -> Tensor:
    if isinstance(operand.difference, Channel):
        return with_axis(operand.difference)
    shape = [1 if d == first.axis else s for d, s in enumerate(operand.base.shape)]
    return first.delta.new_zeros(first.count, *shape)


def _stacked(tensors: Sequence[Operand]) -> list[Tensor]:
    """Dense differences of all operands, zeros for those that do not differ."""
    count = next(o.difference.count for o in tensors if o.difference is not None)
    return [
        torch.zeros_like(o.base).expand(count, *o.base.shape) if o.difference is None else o.difference.dense()
        for o in tensors
    ]


@rule(aten.stack.default)
def stack(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Outcome:
    """Stacking: concatenation along a new dimension."""
    axis = normal_dim(dim, call.output.base.dim())
    return Dense(torch.stack(_stacked(tensors), axis + 1))


@rule(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.flip.default,
    aten.roll.default,
    aten.repeat.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
)
def rearrangement(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    """Any other rearrangement: applied to the differences."""
    return linear_in_each(call, args, kwargs)


@rule(aten.embedding.default)
def embedding(call: Call, weight: Operand, indices: Operand, *options: Any) -> Outcome:
    """A one-hot difference of the table sits on one feature, at the positions that look its row up."""
    difference = weight.difference
    if difference is None or indices.difference is not None:
        return fallback(call, weight, indices, *options)
    if not isinstance(difference, OneHot):
        return Dense(torch.func.vmap(lambda w: F.embedding(indices.base, w))(difference.dense()))
    rows, features = difference.positions()
    hits = indices.base.unsqueeze(0) == rows.reshape(-1, *(1 for _ in indices.base.shape))
    values = difference.values.reshape(-1, *(1 for _ in indices.base.shape))
    return Channel(call.output.base.dim() - 1, features, hits * values, call.output.base.shape)
