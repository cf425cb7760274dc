"""Operations that only move entries about: views, slices, padding, concatenation. Linear, so they act on differences.

A channel difference stays one wherever the operation leaves its axis alone; elsewhere it becomes dense.

Legend: p perturbations, n samples, c channels; shape: of a base value; rest: the other dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Num
from torch import Tensor

from deepzero.errors import GraphError
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import (
    Blocks,
    Channel,
    ChannelEntry,
    Dense,
    Difference,
    LowRank,
    OneHot,
    RankOne,
    Segment,
    entries,
    memory_order,
)
from deepzero.graph.host_numbers import is_known, mapped, on_host, placed
from deepzero.graph.rules.base import in_order, linear_jointly, linear_map, normal_dim, rule
from deepzero.graph.rules.pointwise import broadcast, scaled_by

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


def with_axis(difference: Channel) -> Num[Tensor, "p ..."]:
    """``[p, *shape]`` with length 1 along the channel's axis."""
    return difference.delta.unsqueeze(difference.axis + 1)


def as_channel(difference: Channel, stacked: Num[Tensor, "p ..."], axis: int, shape: torch.Size) -> Channel:
    """A channel from a stacked tensor with length 1 along ``axis``."""
    return Channel(axis, difference.channels, stacked.squeeze(axis + 1), shape)


@rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    rank_one=True,
    low_rank=True,
    blocks=True,
    pending=True,
)
def view(call: Call, x: Operand, *_: Any) -> Outcome:
    """Another shape for the same entries, row-major."""
    shape = call.output.base.shape
    difference: Any = x.difference
    if isinstance(difference, Blocks) and len(shape) > 1 and shape[0] == difference.shape[0]:
        return cast(Dense, difference.reshaped(shape))
    return reshaped(in_order(x).difference, shape)


def reshaped(difference: Difference | None, shape: torch.Size) -> Difference:
    """A difference in another shape of as many entries.

    A channel whose dimension is cut in several (``[heads * e]`` to ``[heads, e]``) stays one along the first of them.
    """
    assert difference is not None
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, difference.values, shape)
    if isinstance(difference, (RankOne, LowRank)) and shape[-1:] == difference.shape[-1:]:
        return _rows_reshaped(difference, shape)
    if isinstance(difference, Channel) and shape.numel():
        channel = _channel_reshaped(difference, shape)
        if channel is not None:
            return channel
    return Dense(difference.dense().reshape(difference.count, *shape))


def _channel_reshaped(difference: Channel, shape: torch.Size) -> Channel | Segment | None:
    """A channel whose dimension stays, is cut, or is joined with the last one behind it; None elsewhere."""
    if _joins(difference, shape):
        if isinstance(difference, ChannelEntry):
            channels = _flat((difference.channels, difference.places), difference.shape[-2:])
            return Channel(len(shape) - 1, channels, difference.line, shape)
        delta = difference.delta.reshape(difference.count, *shape[:-1], difference.shape[-1])
        return Segment(difference.channels, delta, shape)
    size, front = difference.shape[difference.axis], math.prod(difference.shape[: difference.axis])
    for axis, part in enumerate(shape):
        same_place = math.prod(shape[:axis]) == front
        if same_place and part == size:
            delta = difference.delta.reshape(difference.count, *_without(shape, axis))
            return Channel(axis, difference.channels, delta, shape)
        if same_place and part > 1 and size % part == 0:
            return _split_channel(difference, shape, axis)
    return None


def _rows_reshaped(difference: RankOne | LowRank, shape: torch.Size) -> RankOne | LowRank:
    """Other dimensions before the last."""
    if isinstance(difference, RankOne):
        coefficients = difference.coefficients.reshape(difference.count, *shape[:-1])
        return replace(difference, coefficients=coefficients, shape=shape)
    factors = difference.factors.reshape(difference.count, *shape[:-1], difference.factors.shape[-1])
    if difference.multiples is None or difference.rows is None:
        return replace(difference, factors=factors, shape=shape)
    multiples = difference.multiples.reshape(difference.count, *shape[:-1])
    return LowRank(factors, difference.vectors, shape, multiples, difference.rows.reshaped(shape))


def _joins(difference: Channel, shape: torch.Size) -> bool:
    """True if the channel's dimension and the last, behind it, become one: heads and their features."""
    size = difference.shape[-2:].numel()
    return difference.axis == len(difference.shape) - 2 and shape[-1:] == (size,)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _split_channel(difference: Channel, shape: torch.Size, axis: int) -> Channel:
    """A channel as one along ``axis``, the first part of its dimension; of the other parts, one entry differs."""
    inner = difference.shape[difference.axis] // shape[axis]
    channels = mapped(difference.channels, lambda c: torch.div(c, inner, rounding_mode="floor"))
    if axis == len(shape) - 2 and shape[-1] == inner:
        line = difference.delta.reshape(difference.count, *shape[:axis])
        return ChannelEntry(axis, channels, line, mapped(difference.channels, lambda c: c % inner), shape)
    rest = list(difference.delta.shape)
    rest.insert(difference.axis + 1, inner)
    delta = difference.delta.new_zeros(rest)
    index = (difference.channels % inner).reshape(-1, *(1 for _ in rest[1:]))
    source = difference.delta.unsqueeze(difference.axis + 1)
    delta.scatter_(difference.axis + 1, index.expand(source.shape), source)
    return Channel(axis, channels, delta.reshape(difference.count, *_without(shape, axis)), shape)


@rule(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, rank_one=True, low_rank=True)
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
    if isinstance(difference, ChannelEntry) and order[-1] == x.base.dim() - 1:
        line = difference.line.unsqueeze(difference.axis + 1).permute(stacked_order[:-1])
        axis = order.index(difference.axis)
        return ChannelEntry(axis, difference.channels, line.squeeze(axis + 1), difference.places, shape)
    if isinstance(difference, Channel):
        return as_channel(difference, with_axis(difference).permute(stacked_order), order.index(difference.axis), shape)
    if isinstance(difference, OneHot) and order:
        positions = difference.positions()
        return OneHot(_flat([positions[d] for d in order], shape), difference.values, shape)
    return Dense(difference.dense().permute(stacked_order))


def _flat(positions: Sequence[Int64[Tensor, " p"]], shape: Sequence[int]) -> Int64[Tensor, " p"]:
    """Flat indices of multi-indices."""
    known = all(is_known(position) for position in positions)
    index = torch.zeros_like(on_host(positions[0]) if known else positions[0])
    for position, size in zip(positions, shape, strict=True):
        index = index * size + (on_host(position) if known else position)
    return placed(index, positions[0].device)


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


@rule(aten.slice.Tensor, rank_one=True, blocks=True)
def slice_rule(
    call: Call, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Outcome:
    """``x[start:end:step]`` along a dimension."""
    axis = normal_dim(dim, x.base.dim())
    first, _, stride = slice(start, end, step).indices(x.base.shape[axis])
    difference: Any = x.difference
    if isinstance(difference, Blocks) and axis > 0:
        shape = call.output.base.shape
        window = _window(axis, first, stride, shape[axis])
        return cast(Dense, difference.each(lambda images: images[window], shape))  # a kind that this rule may give
    x = in_order(x)
    return taken(x.difference, axis, first, stride, call.output.base.shape)


def taken(difference: Difference | None, axis: int, first: int, step: int, shape: torch.Size) -> Difference | None:
    """Entries ``first, first + step, ...`` along ``axis``, as many as ``shape`` has; None if none of them differs."""
    assert difference is not None
    size = shape[axis]
    if isinstance(difference, RankOne) and axis == len(shape) - 1:
        return _taken_entries(difference, _window(0, first, step, size)[0], shape)
    if isinstance(difference, Channel) and difference.axis != axis:
        out = with_axis(difference)[_window(axis + 1, first, step, size)]
        return as_channel(difference, out, difference.axis, shape)
    if isinstance(difference, Dense):
        return difference.rearranged(lambda d: d[_window(axis + 1, first, step, size)])
    if isinstance(difference, (RankOne, Segment, LowRank)) or size == 0:
        return Dense(difference.dense()[_window(axis + 1, first, step, size)])
    position = on_host(difference.channels if isinstance(difference, Channel) else difference.positions()[axis])
    place = torch.div(position - first, step, rounding_mode="floor")
    inside = (position >= first) & (position < first + size * step) & (place * step + first == position)
    return _kept(difference, axis, place, inside, shape)


def _taken_entries(difference: RankOne, window: slice, shape: torch.Size) -> RankOne:
    """Some entries of each row: of the directions, and of the rows given in full."""
    rows = None if difference.rows is None else difference.rows[:, window]
    return replace(difference, directions=difference.directions[..., window], rows=rows, shape=shape)


def _window(axis: int, first: int, step: int, size: int) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), slice(first, first + size * step, step))


def _kept(
    difference: Channel | OneHot,
    axis: int,
    place: Int64[Tensor, " p"],
    inside: Bool[Tensor, " p"],
    shape: torch.Size,
) -> Difference | None:
    """The difference at a new place along ``axis``; zero in perturbations that are not ``inside``.

    Place and ``inside`` are the host's.
    """
    every = bool(inside.all())
    if not every and not bool(inside.any()):
        return None
    device = difference.values.device if isinstance(difference, OneHot) else difference.delta.device
    place = placed(place if every else torch.where(inside, place, 0), device)
    inside = inside if every else inside.to(device, non_blocking=True)
    if isinstance(difference, OneHot):
        positions = [place if d == axis else p for d, p in enumerate(difference.positions())]
        values = difference.values if every else torch.where(inside, difference.values, 0)
        return OneHot(_flat(positions, shape), values, shape)
    kept = inside.reshape(-1, *(1 for _ in difference.delta.shape[1:]))
    delta = difference.delta if every else torch.where(kept, difference.delta, 0)
    return Channel(axis, place, delta, shape)


@rule(aten.select.int)
def select(call: Call, x: Operand, dim: int, index: int) -> Outcome:
    """One entry along a dimension."""
    return selected(x.difference, normal_dim(dim, x.base.dim()), index)


def selected(difference: Difference | None, axis: int, index: int) -> Difference | None:
    """Entry ``index`` along ``axis``; None if it does not differ."""
    assert difference is not None
    index = normal_dim(index, difference.shape[axis])
    shape = torch.Size(_without(difference.shape, axis))
    if isinstance(difference, Channel) and difference.axis != axis:
        out = with_axis(difference).select(axis + 1, index)
        return as_channel(difference, out, difference.axis - (axis < difference.axis), shape)
    if isinstance(difference, Dense):
        return Dense(difference.delta.select(axis + 1, index))
    one = torch.Size(1 if d == axis else size for d, size in enumerate(difference.shape))
    kept = taken(difference, axis, index, 1, one)
    if isinstance(kept, Channel):
        return Dense(kept.delta)
    return None if kept is None else reshaped(kept, shape)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, rank_one=True)
def split(call: Call, x: Operand, _: Any, dim: int = 0) -> Outcome:
    """Pieces along a dimension; those that do not differ stay so."""
    axis = normal_dim(dim, x.base.dim())
    pieces, start = [], 0
    for piece in call.output.base:
        pieces.append(taken(x.difference, axis, start, 1, piece.shape))
        start += piece.shape[axis]
    return tuple(pieces)


@rule(aten.unbind.int)
def unbind(call: Call, x: Operand, dim: int = 0) -> Outcome:
    """Every entry along a dimension."""
    axis = normal_dim(dim, x.base.dim())
    return tuple(selected(x.difference, axis, index) for index in range(x.base.shape[axis]))


@rule(aten.expand.default)
def expand(call: Call, x: Operand, *_: Any, **__: Any) -> Outcome:
    """Broadcast to a shape."""
    assert x.difference is not None
    return broadcast(x.difference, call.output.base.shape)


@rule(aten.broadcast_tensors.default)
def broadcast_tensors(call: Call, tensors: Sequence[Operand]) -> Outcome:
    """Each tensor broadcast to the shape of all."""
    shape = call.output.base[0].shape
    return tuple(None if o.difference is None else broadcast(o.difference, shape) for o in tensors)


@rule(aten.constant_pad_nd.default, aten.pad.default, blocks=True)
def pad(call: Call, x: Operand, widths: Sequence[int], *mode_and_value: Any) -> Outcome:
    """Padding; a constant border does not differ, so the difference is padded with zeros."""
    mode = mode_and_value[0] if mode_and_value and isinstance(mode_and_value[0], str) else "constant"
    shape = call.output.base.shape
    blocks: Any = x.difference
    if isinstance(blocks, Blocks) and mode == "constant" and len(widths) < 2 * x.base.dim():
        return cast(Dense, blocks.each(lambda images: F.pad(images, (0, 0, *widths)), shape))
    difference = in_order(x).difference
    assert difference is not None
    if mode != "constant":
        kept = {d: d for d in range(x.base.dim() - len(widths) // 2)}
        return linear_map(difference, lambda d: F.pad(d, tuple(widths), mode=mode), shape, kept)
    if isinstance(difference, Channel):
        position = 2 * (x.base.dim() - 1 - difference.axis)
        low, high = (widths[position], widths[position + 1]) if position < len(widths) else (0, 0)
        if low >= 0 and high >= 0:
            channels = mapped(difference.channels, lambda c: c + low)
            rest = [0 if i in (position, position + 1) else w for i, w in enumerate(widths)]
            out = F.pad(with_axis(difference), rest)
            return Channel(difference.axis, channels, out.squeeze(difference.axis + 1), shape)
    dense = difference if isinstance(difference, Dense) else Dense(difference.dense())
    return dense.rearranged(lambda d: _padded(d, widths))


def _padded(d: Num[Tensor, " p *shape"], widths: Sequence[int]) -> Num[Tensor, " p *padded"]:
    """``F.pad(d, widths)`` with the dimensions in the order in which they lie in memory, which the result keeps."""
    order = [0, *(axis + 1 for axis in memory_order(d))]
    of_axis = {d.dim() - 1 - i: tuple(widths[2 * i : 2 * i + 2]) for i in range(len(widths) // 2)}
    reordered = [width for axis in reversed(order) for width in of_axis.get(axis, (0, 0))]
    return F.pad(d.permute(order), reordered).permute([order.index(axis) for axis in range(d.dim())])


@rule(aten.cat.default)
def cat(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Outcome:
    """Concatenation; an empty tensor of one dimension may stand among any others, and adds nothing."""
    shape = call.output.base.shape
    parts = [(o.base.shape, o.difference) for o in tensors if o.base.dim() == len(shape)]
    return concatenated(parts, normal_dim(dim, len(shape)), shape)


Part = tuple[torch.Size, Difference | None]
"""Shape of a base value, and its difference."""


def concatenated(parts: Sequence[Part], axis: int, shape: torch.Size) -> Difference:
    """The difference of a concatenation along ``axis``."""
    differing = [(place, d) for place, (_, d) in enumerate(parts) if d is not None]
    place, first = differing[0]
    before = sum(part[axis] for part, _ in parts[:place])
    if len(differing) == 1 and isinstance(first, OneHot):
        positions = [p + before if d == axis else p for d, p in enumerate(first.positions())]
        return OneHot(_flat(positions, shape), first.values, shape)
    if len(differing) == 1 and isinstance(first, Channel) and first.axis == axis:
        return Channel(axis, mapped(first.channels, lambda c: c + before), first.delta, shape)
    if isinstance(first, Channel) and all(_together(first, d, axis) for _, d in differing):
        stacks = [_on_channel(part, d, first) for part, d in parts]
        return as_channel(first, torch.cat(stacks, axis + 1), first.axis, shape)
    return Dense(torch.cat([_dense(part, d, first) for part, d in parts], axis + 1))


def _together(first: Channel, other: Difference, axis: int) -> bool:
    if not isinstance(other, Channel) or first.axis != other.axis or axis == first.axis:
        return False
    same = first.channels is other.channels or torch.equal(on_host(first.channels), on_host(other.channels))
    return same and first.shape[first.axis] == other.shape[other.axis]


def _on_channel(shape: torch.Size, difference: Difference | None, first: Channel) -> Num[Tensor, "p ..."]:
    if isinstance(difference, Channel):
        return with_axis(difference)
    sizes = [1 if d == first.axis else s for d, s in enumerate(shape)]
    return first.delta.new_zeros(1).expand(first.count, *sizes)


def _dense(shape: torch.Size, difference: Difference | None, like: Difference) -> Num[Tensor, "p ..."]:
    if difference is not None:
        return difference.dense()
    return entries(like).new_zeros(1).expand(like.count, *shape)


@rule(aten.stack.default)
def stack(call: Call, tensors: Sequence[Operand], dim: int = 0) -> Outcome:
    """Stacking: concatenation along a new dimension."""
    shape = call.output.base.shape
    axis = normal_dim(dim, len(shape))
    one = torch.Size(1 if d == axis else size for d, size in enumerate(shape))
    parts = [(one, None if o.difference is None else _with_new_axis(o.difference, axis, one)) for o in tensors]
    return concatenated(parts, axis, shape)


def _with_new_axis(difference: Difference, axis: int, shape: torch.Size) -> Difference:
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, difference.values, shape)
    if isinstance(difference, Channel):
        moved = difference.axis + (axis <= difference.axis)
        delta = difference.delta.reshape(difference.count, *_without(shape, moved))
        return Channel(moved, difference.channels, delta, shape)
    return Dense(difference.dense().unsqueeze(axis + 1))


@rule(aten.flip.default)
def flip(call: Call, x: Operand, dims: Sequence[int]) -> Outcome:
    """Reversed along some dimensions."""
    axes = [normal_dim(d, x.base.dim()) for d in dims]
    difference = _relocated(x.difference, axes, lambda _, position, size: size - 1 - position)
    return _along_others(difference, axes, lambda d, dims: d.flip(dims))


@rule(aten.roll.default)
def roll(call: Call, x: Operand, shifts: Sequence[int], dims: Sequence[int] = ()) -> Outcome:
    """Rolled along some dimensions; without any, along the flattened entries."""
    if not dims:
        assert x.difference is not None
        flat = x.difference.dense().flatten(1).roll(sum(shifts), 1)
        return Dense(flat.reshape(x.difference.count, *x.base.shape))
    by_axis: dict[int, int] = {}
    for shift, d in zip(shifts, dims, strict=True):
        axis = normal_dim(d, x.base.dim())
        by_axis[axis] = by_axis.get(axis, 0) + shift
    axes = list(by_axis)
    difference = _relocated(x.difference, axes, lambda axis, position, size: (position + by_axis[axis]) % size)
    return _along_others(difference, axes, lambda d, dims: d.roll([by_axis[a - 1] for a in dims], dims))


def _relocated(
    difference: Difference | None, axes: list[int], place: Callable[[int, Tensor, int], Tensor]
) -> Difference | None:
    """A channel at its new place along its own dimension; any other difference as it is."""
    if not isinstance(difference, Channel) or difference.axis not in axes:
        return difference
    channels = place(difference.axis, difference.channels, difference.shape[difference.axis])
    return Channel(difference.axis, channels, difference.delta, difference.shape)


def _along_others(
    difference: Difference | None, axes: list[int], move: Callable[[Tensor, list[int]], Tensor]
) -> Difference:
    """``move`` along ``axes`` of the stack, but for a channel's own."""
    assert difference is not None
    if isinstance(difference, Channel):
        others = [a + 1 for a in axes if a != difference.axis]
        out = move(with_axis(difference), others) if others else with_axis(difference)
        return as_channel(difference, out, difference.axis, difference.shape)
    return Dense(move(difference.dense(), [a + 1 for a in axes]))


@rule(aten.repeat.default)
def repeat(call: Call, x: Operand, repeats: Sequence[int]) -> Outcome:
    """Copies beside each other, also along new dimensions in front."""
    assert x.difference is not None
    lead = len(repeats) - x.base.dim()
    kept = {d: d + lead for d in range(x.base.dim()) if repeats[d + lead] == 1}
    return linear_map(x.difference, lambda d: d.repeat(tuple(repeats)), call.output.base.shape, kept)


@rule(aten.tile.default)
def tile(call: Call, x: Operand, repeats: Sequence[int]) -> Outcome:
    """:func:`repeat`, where missing numbers in front are 1."""
    return repeat(call, x, (*(1 for _ in range(x.base.dim() - len(repeats))), *repeats))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call, x: Operand, repeats: int, dim: int | None = None, **_: Any) -> Outcome:
    """Each entry several times."""
    assert x.difference is not None
    ndim = x.base.dim()
    kept = {} if dim is None else {d: d for d in range(ndim) if d != normal_dim(dim, ndim)}
    return linear_map(x.difference, lambda d: d.repeat_interleave(repeats, dim), call.output.base.shape, kept)


@rule(aten.tril.default, aten.triu.default)
def triangle(call: Call, x: Operand, diagonal: int = 0) -> Outcome:
    """A triangle of each matrix: the difference times ones and zeros."""
    assert x.difference is not None
    ones = torch.ones(x.base.shape[-2:], dtype=x.base.dtype, device=x.base.device)
    mask = call.memo("mask", lambda: call.node.target(ones, diagonal))
    return scaled_by(x.difference, mask, x.base.shape)


@rule(aten.diagonal.default)
def diagonal(call: Call, x: Operand, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Outcome:
    """A diagonal of two dimensions, which goes last."""
    assert x.difference is not None
    gone = [normal_dim(d, x.base.dim()) for d in (dim1, dim2)]
    kept = {d: d - sum(g < d for g in gone) for d in range(x.base.dim()) if d not in gone}
    return linear_map(x.difference, lambda d: d.diagonal(offset, *gone), call.output.base.shape, kept)


@rule(aten.unfold.default)
def unfold(call: Call, x: Operand, dimension: int, size: int, step: int) -> Outcome:
    """Windows along a dimension, their entries last."""
    assert x.difference is not None
    axis = normal_dim(dimension, x.base.dim())
    kept = {d: d for d in range(x.base.dim()) if d != axis}
    return linear_map(x.difference, lambda d: d.unfold(axis, size, step), call.output.base.shape, kept)


@rule(aten.im2col.default, aten.col2im.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def local_rearrangement(call: Call, x: Operand, *args: Any) -> Outcome:
    """Patches of images to columns and back, channels to pixels and back."""
    assert x.difference is not None
    inner = 2 if call.node.target is aten.col2im.default else 3
    kept = {d: d for d in range(x.base.dim() - inner)}
    return linear_map(x.difference, lambda d: call.node.target(d, *args), call.output.base.shape, kept)


@rule(aten.channel_shuffle.default)
def channel_shuffle(call: Call, x: Operand, groups: int) -> Outcome:
    """Channel ``(g, i)`` of groups goes to ``(i, g)``."""
    difference = x.difference
    assert difference is not None
    size = x.base.shape[1] // groups
    if isinstance(difference, Channel) and difference.axis == 1:
        group = torch.div(difference.channels, size, rounding_mode="floor")
        channels = difference.channels % size * groups + group
        return Channel(1, channels, difference.delta, difference.shape)
    return linear_map(difference, lambda d: _shuffled(d, groups), x.base.shape, {d: d for d in range(x.base.dim())})


def _shuffled(x: Num[Tensor, "n c *rest"], groups: int) -> Num[Tensor, "n c *rest"]:
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


@rule(aten.as_strided.default)
def as_strided(
    call: Call, x: Operand, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Outcome:
    """Entries by their places in memory; only of values in one contiguous block."""
    if not x.base.is_contiguous():
        raise GraphError(
            f"{call.node.name} reads the memory of a tensor that is not contiguous (as_strided); call .contiguous() "
            "before, or use evaluator=dz.SequentialEvaluator()"
        )
    assert x.difference is not None
    numbers = torch.arange(x.base.numel(), device=x.base.device)
    index = call.memo("index", lambda: numbers.as_strided(tuple(size), tuple(stride), storage_offset or 0))
    return Dense(x.difference.dense().flatten(1)[:, index])


@rule(
    aten.rot90.default,
    aten.block_diag.default,
    aten.diag.default,
    aten.diag_embed.default,
    aten.diagflat.default,
    aten.trace.default,
    aten.meshgrid.indexing,
    aten.meshgrid.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.diagonal_scatter.default,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
)
def rearrangement(call: Call, *args: Any, **kwargs: Any) -> Outcome:
    """Any other rearrangement: applied to the differences."""
    return linear_jointly(call, args, kwargs)
