"""Looking up, gathering, scattering. Linear in the values as long as the indices do not differ.

Legend: p perturbations, n lookups; x, source: shapes of what is written into and of what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Num
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, SomeSamples
from deepzero.graph.rules.base import linear_map, multilinear, normal_dim, rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten


def _differs(*arguments: Any) -> bool:
    return any(isinstance(a, Operand) and a.difference is not None for a in arguments)


@rule(aten.embedding.default)
def embedding(call: Call, weight: Operand, indices: Operand, *options: Any) -> Any:
    """A one-hot difference of the table sits on one feature, at the positions that look its row up.

    On a CPU the samples in which there are any are told apart; a GPU would have to wait for their number.
    """
    difference, shape = weight.difference, call.output.base.shape
    if difference is None or indices.difference is not None:
        return fallback(call, weight, indices, *options)
    axis = len(shape) - 1
    if isinstance(difference, OneHot):
        rows, features = difference.positions()
        hits = indices.base.unsqueeze(0) == rows.reshape(-1, *(1 for _ in indices.base.shape))
        if call.by_sample and indices.base.dim() > 1 and hits.device.type == "cpu":
            found = hits.flatten(2).any(-1).nonzero()
            if len(found) * 2 <= hits.shape[0] * hits.shape[1]:
                return _in_samples(difference, hits, found, shape)
        values = difference.values.reshape(-1, *(1 for _ in indices.base.shape))
        return Channel(axis, features, hits * values, shape)
    return linear_map(difference, lambda w: F.embedding(indices.base, w), shape, {1: axis})


def _in_samples(
    difference: OneHot, hits: Bool[Tensor, "p b *rest"], found: Int64[Tensor, "r 2"], shape: torch.Size
) -> SomeSamples | None:
    """The difference of the samples in which a row is looked up; None if there are none."""
    if not len(found):
        return None
    owners, samples = found.unbind(1)
    delta = difference.values.new_zeros(len(found), *shape[1:])
    features = difference.positions()[1][owners].reshape(-1, *(1 for _ in shape[1:])).expand(*delta.shape[:-1], 1)
    moved = hits[owners, samples] * difference.values[owners].reshape(-1, *(1 for _ in shape[2:]))
    delta.scatter_(-1, features, moved.unsqueeze(-1))
    return SomeSamples(owners, Channel(0, samples, delta, shape), difference.count)


SUM, MEAN = 0, 1
MASKS = (torch.bool, torch.uint8)


@rule(aten.embedding_bag.padding_idx, aten.embedding_bag.default)
def embedding_bag(
    call: Call,
    weight: Operand,
    indices: Operand,
    offsets: Operand,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Operand | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Outcome:
    """Weighted sums of looked-up rows; the largest of them by the fallback."""
    if mode not in (SUM, MEAN) or _differs(indices, offsets):
        options = (scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset, padding_idx)
        taken = options if call.node.target is aten.embedding_bag.padding_idx else options[:-1]
        return fallback(call, weight, indices, offsets, *taken)
    shape = call.output.base[0].shape
    bags = call.memo("bags", lambda: _bags(indices.base, offsets.base))
    shares = call.memo("shares", lambda: _shares(indices.base, bags, shape[0], mode, padding_idx, weight.base.dtype))
    if per_sample_weights is None and isinstance(weight.difference, OneHot):
        rows, features = weight.difference.positions()
        hits = (indices.base == rows.unsqueeze(1)) * shares * weight.difference.values.unsqueeze(1)
        delta = hits.new_zeros(len(rows), shape[0]).index_add_(1, bags, hits)
        return Channel(1, features, delta, shape), None, None, None

    def bag(table: Tensor, own: Tensor) -> Tensor:
        rows = F.embedding(indices.base, table) * (shares * own).unsqueeze(1)
        return torch.zeros(shape, dtype=rows.dtype, device=rows.device).index_add(0, bags, rows)

    own = per_sample_weights or Operand(type(weight.value)(torch.ones_like(shares)), None)
    return Dense(multilinear(bag, (weight, own))), None, None, None


def _bags(indices: Int64[Tensor, " n"], offsets: Int64[Tensor, " bags"]) -> Int64[Tensor, " n"]:
    """The bag of each lookup."""
    places = torch.arange(len(indices), device=indices.device)
    return torch.searchsorted(offsets.to(places.dtype), places, right=True) - 1


def _shares(
    indices: Int64[Tensor, " n"],
    bags: Int64[Tensor, " n"],
    count: int,
    mode: int,
    padding: int | None,
    dtype: torch.dtype,
) -> Num[Tensor, " n"]:
    """The weight of each lookup: 0 for padding, and in a mean one over the number of lookups of its bag."""
    keep = torch.ones_like(indices, dtype=dtype)
    if padding is not None and padding >= 0:
        keep = (indices != padding).to(dtype)
    if mode == SUM:
        return keep
    size = torch.zeros(count, dtype=dtype, device=indices.device).index_add_(0, bags, keep)
    return keep / size.clamp(min=1)[bags]


@rule(aten.index.Tensor)
def index(call: Call, x: Operand, indices: Sequence[Operand | None]) -> Outcome:
    """``x[i, j, ...]``: the same entries of the difference, behind the stack's dimension."""
    if x.difference is None or _differs(*indices):
        return fallback(call, x, indices)
    found = [None if i is None else i.base for i in indices]
    kept = _untouched(found, x.base.dim(), call.output.base.dim())
    if isinstance(x.difference, Channel) and x.difference.axis in kept:
        axis = kept[x.difference.axis]
        out = aten.index.Tensor(x.difference.delta.unsqueeze(x.difference.axis + 1), [None, *found])
        return Channel(axis, x.difference.channels, out.squeeze(axis + 1), call.output.base.shape)
    dense = x.difference.dense()
    out = aten.index.Tensor(dense, [None, *found])
    front = _goes_in_front(found)  # then indices apart put their dimensions before the stack's
    return Dense(out.movedim(front, 0) if front else out)


def _goes_in_front(indices: Sequence[Tensor | None]) -> int:
    """Dimensions that indexing puts in front of all others; 0 if the indices stand side by side."""
    places = [place for place, i in enumerate(indices) if i is not None]
    if not places or places[-1] - places[0] + 1 == len(places):
        return 0
    return _index_dims(indices)


def _index_dims(indices: Sequence[Tensor | None]) -> int:
    return max(1 if i.dtype in MASKS else i.dim() for i in indices if i is not None)


def _untouched(indices: Sequence[Tensor | None], ndim: int, out_ndim: int) -> dict[int, int]:
    """Dimensions that integer indices side by side leave alone -> where they are in the result."""
    places = [place for place, i in enumerate(indices) if i is not None]
    masks = any(i is not None and i.dtype in MASKS for i in indices)
    if masks or not places or places[-1] - places[0] + 1 != len(places):
        return {}
    shift = out_ndim - ndim
    return {d: d if d < places[0] else d + shift for d in range(ndim) if d not in places}


@rule(aten.index_select.default)
def index_select(call: Call, x: Operand, dim: int, indices: Operand) -> Outcome:
    """Some entries along a dimension."""
    if x.difference is None or indices.difference is not None:
        return fallback(call, x, dim, indices)
    axis = normal_dim(dim, x.base.dim()) if x.base.dim() else 0
    if x.base.dim() == 0:
        return Dense(x.difference.dense())
    if isinstance(x.difference, Channel) and x.difference.axis != axis:
        out = x.difference.delta.unsqueeze(x.difference.axis + 1).index_select(axis + 1, indices.base)
        return Channel(
            x.difference.axis, x.difference.channels, out.squeeze(x.difference.axis + 1), call.output.base.shape
        )
    return Dense(x.difference.dense().index_select(axis + 1, indices.base.reshape(-1)))


@rule(aten.gather.default)
def gather(call: Call, x: Operand, dim: int, indices: Operand, **_: Any) -> Outcome:
    """One entry along a dimension for each place."""
    if x.difference is None or indices.difference is not None:
        return fallback(call, x, dim, indices)
    dense, index = x.difference.dense(), indices.base
    if x.base.dim() == 0:
        return Dense(
            dense.unsqueeze(1).gather(1, index.reshape(1, -1).expand(len(dense), -1)).reshape(-1, *index.shape)
        )
    return Dense(dense.gather(normal_dim(dim, x.base.dim()) + 1, index.unsqueeze(0).expand(len(dense), *index.shape)))


@rule(aten.take_along_dim.default)
def take_along_dim(call: Call, x: Operand, indices: Operand, dim: int | None = None) -> Outcome:
    """One entry along a dimension for each place, with broadcasting."""
    if x.difference is None or indices.difference is not None:
        return fallback(call, x, indices, dim)
    dense = x.difference.dense()
    return Dense(torch.func.vmap(lambda d: torch.take_along_dim(d, indices.base, dim))(dense))


@rule(aten.take.default)
def take(call: Call, x: Operand, indices: Operand) -> Outcome:
    """Entries by their flat places."""
    if x.difference is None or indices.difference is not None:
        return fallback(call, x, indices)
    return Dense(x.difference.dense().flatten(1)[:, indices.base])


@rule(aten.scatter.src, aten.scatter_add.default, aten.index_add.default, aten.index_copy.default)
def scatter(call: Call, x: Operand, dim: int, indices: Operand, source: Operand, **options: Any) -> Outcome:
    """Entries of a source written to, or added to, places along a dimension: linear in both tensors together."""
    if indices.difference is not None:
        return fallback(call, x, dim, indices, source, **options)
    axis = normal_dim(dim, x.base.dim())
    if call.node.target is not aten.scatter.src and call.node.target is not aten.scatter_add.default:
        return _written(call, x, axis, indices, source, **options)
    stacked = _stack_of(x, source)
    index = indices.base.unsqueeze(0).expand(stacked[0].shape[0], *indices.base.shape)
    return Dense(call.node.target(stacked[0], axis + 1, index, stacked[1]))


def _stack_of(x: Operand, source: Operand) -> tuple[Num[Tensor, " p *x"], Num[Tensor, " p *source"]]:
    """Dense differences of both; zeros for one that does not differ."""
    count = next(o.difference.count for o in (x, source) if o.difference is not None)
    first, second = (
        torch.zeros_like(o.base).expand(count, *o.base.shape) if o.difference is None else o.difference.dense()
        for o in (x, source)
    )
    return first, second


def _written(call: Call, x: Operand, axis: int, indices: Operand, source: Operand, **options: Any) -> Difference:
    """By whole slices along ``axis``; a channel of another dimension stays one."""
    differences = [o.difference for o in (x, source)]
    only = next(d for d in differences if d is not None)
    count = sum(d is not None for d in differences)
    if (
        isinstance(only, Channel)
        and only.axis != axis
        and count == 1
        and x.base.shape[only.axis] == only.shape[only.axis]
    ):
        one = [_single(o, only) for o in (x, source)]
        out = call.node.target(one[0], axis + 1, indices.base, one[1], **options)
        return Channel(only.axis, only.channels, out.squeeze(only.axis + 1), call.output.base.shape)
    first, second = _stack_of(x, source)
    return Dense(call.node.target(first, axis + 1, indices.base, second, **options))


def _single(operand: Operand, only: Channel) -> Num[Tensor, "p ..."]:
    """The difference with length 1 along the channel's dimension; zeros for an operand that does not differ."""
    if isinstance(operand.difference, Channel):
        return only.delta.unsqueeze(only.axis + 1)
    sizes = [1 if d == only.axis else size for d, size in enumerate(operand.base.shape)]
    return only.delta.new_zeros(only.count, *sizes)


@rule(aten.scatter.value, aten.index_fill.int_Scalar)
def overwritten(call: Call, x: Operand, dim: int, indices: Operand, value: float) -> Outcome:
    """Places set to a number: there the difference is 0."""
    if x.difference is None or indices.difference is not None:
        return fallback(call, x, dim, indices, value)
    axis = normal_dim(dim, x.base.dim())
    return Dense(torch.func.vmap(lambda d: call.node.target(d, axis, indices.base, 0))(x.difference.dense()))


@rule(aten.scatter_reduce.two)
def scatter_reduce(
    call: Call, x: Operand, dim: int, indices: Operand, source: Operand, reduce: str, *, include_self: bool = True
) -> Outcome:
    """Sums and means, which are linear; products and extremes by the fallback."""
    if indices.difference is not None or reduce not in ("sum", "mean"):
        return fallback(call, x, dim, indices, source, reduce, include_self=include_self)
    axis = normal_dim(dim, x.base.dim())
    first, second = _stack_of(x, source)
    index = indices.base.unsqueeze(0).expand(first.shape[0], *indices.base.shape)
    return Dense(first.scatter_reduce(axis + 1, index, second, reduce, include_self=include_self))


@rule(aten.index_put.default)
def index_put(
    call: Call, x: Operand, indices: Sequence[Operand | None], values: Operand, accumulate: bool = False
) -> Outcome:
    """``x[i, j, ...] = values`` or ``+= values``: linear in both tensors together."""
    if _differs(*indices):
        return fallback(call, x, indices, values, accumulate)
    found = [None if i is None else i.base for i in indices]
    first, second = _stack_of(x, values)
    place = call.memo("place", lambda: _flat_place(found, x.base))
    source = second.reshape(len(second), *(1 for _ in range(place.dim() - values.base.dim())), *values.base.shape)
    source = source.expand(-1, *place.shape).flatten(1)
    out = first.reshape(len(first), -1).clone()
    if accumulate:
        out.index_add_(1, place.flatten(), source)
    else:
        out[:, place.flatten()] = source
    return Dense(out.reshape(first.shape))


def _flat_place(indices: Sequence[Tensor | None], base: Tensor) -> Int64[Tensor, ...]:
    """The flat places that indices pick."""
    numbers = torch.arange(base.numel(), device=base.device).reshape(base.shape)
    place: Tensor = aten.index.Tensor(numbers, indices)
    return place


@rule(aten.masked_scatter.default)
def masked_scatter(call: Call, x: Operand, mask: Operand, source: Operand) -> Outcome:
    """Entries of a source written, in order, where a mask is true."""
    if mask.difference is not None:
        return fallback(call, x, mask, source)
    first, second = _stack_of(x, source)
    place = mask.base.expand(x.base.shape).flatten().nonzero().squeeze(1)
    out = first.reshape(len(first), -1).clone()
    out[:, place] = second.flatten(1)[:, : len(place)]
    return Dense(out.reshape(first.shape))


@rule(aten._sparse_mm.default)
def sparse_product(call: Call, a: Operand, b: Operand) -> Outcome:
    """A sparse matrix that does not differ, times a difference: its columns side by side."""
    if a.difference is not None or b.difference is None or not a.base.is_sparse:
        return fallback(call, a, b)
    if isinstance(b.difference, Channel) and b.difference.axis == 1:
        out = torch.sparse.mm(a.base, b.difference.delta.t()).t()
        return Channel(1, b.difference.channels, out, call.output.base.shape)
    dense = b.difference.dense().movedim(0, -1)
    out = torch.sparse.mm(a.base, dense.flatten(1)).unflatten(1, dense.shape[1:])
    return Dense(out.movedim(-1, 0))
