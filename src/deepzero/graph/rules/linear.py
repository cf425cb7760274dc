"""Linear layers and matrix products. Bilinear: ``(a + da)(b + db) - a b = da b + (a + da) db``.

A one-hot factor picks one row or column of the other; a channel difference reaches the product through one row, which
makes a rank-one difference, or stays on its channel. Nothing is conjugated, so complex values take the same path.

Legend: p perturbations, m rows, k summed over, n columns, batch and lead: dimensions before these; i, j, o: features of
two inputs and of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Num, Shaped
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, LowRank, OneHot, RankOne, Segment, runs_of
from deepzero.graph.host_numbers import mapped
from deepzero.graph.rules.base import difference_of, in_order, map_delta, multilinear, rule
from deepzero.graph.rules.pointwise import broadcast, total

aten = torch.ops.aten


@rule(aten.linear.default, rank_one=True, low_rank=True, blocks=True, pending=True)
def linear(call: Call, x: Operand, weight: Operand, bias: Operand | None = None) -> Outcome:
    """``x W^T + b``."""
    shape = call.output.base.shape
    difference: Any = x.difference
    if isinstance(difference, Blocks) and len(shape) == 2 and weight.difference is None:
        product = kernels.on(weight.base).linear_of_blocks(difference, weight.value, shape)
        if product is None:
            product = Dense(Blocks(weight.base @ difference.blocks, shape).dense())
        return _added_bias(product, bias, shape)
    x = in_order(x)
    if weight.base.dim() != 2:
        return _added_bias(Dense(multilinear(F.linear, (x, weight))) if _any(x, weight) else None, bias, shape)
    through = None if x.difference is None else through_matrix(x.difference, weight.base.t(), shape)
    own = None if weight.difference is None else _matrix_change(x, _turned(weight.difference), shape)
    return _added_bias(_sum(through, own), bias, shape)


def _any(*operands: Operand) -> bool:
    return any(o.difference is not None for o in operands)


def _added_bias(product: Difference | None, bias: Operand | None, shape: torch.Size) -> Difference | None:
    change = difference_of(bias)
    return product if change is None else total([product, broadcast(change, shape)])


def _sum(through: Difference | None, own: Difference | None) -> Difference | None:
    """Of a fresh difference and one that often sits on a single channel: added to it in place."""
    if isinstance(through, Dense) and isinstance(own, Channel):
        source = own.delta.unsqueeze(own.axis + 1)
        index = own.channels.reshape(-1, *(1 for _ in source.shape[1:])).expand(source.shape)
        return Dense(through.delta.scatter_add_(own.axis + 1, index, source))
    return total([through, own])


def through_matrix(difference: Difference, matrix: Num[Tensor, "k n"], shape: torch.Size) -> Difference:
    """``da B`` for a matrix B that does not differ, in fresh memory."""
    last = len(shape) - 1
    if isinstance(difference, (RankOne, Segment, LowRank)):
        return _factor_through(difference, matrix, shape)
    if isinstance(difference, Channel) and difference.axis == last:
        return RankOne(difference.delta, matrix.unsqueeze(1), difference.channels, shape)
    if isinstance(difference, Channel):
        return Channel(difference.axis, difference.channels, difference.delta @ matrix, shape)
    if isinstance(difference, OneHot) and len(difference.shape) == 2:
        rows, features = difference.positions()
        return Channel(0, rows, difference.values.unsqueeze(1) * matrix[features], shape)
    return Dense(F.linear(difference.dense(), matrix.t()), owned=True)


def _factor_through(
    difference: RankOne | Segment | LowRank, matrix: Num[Tensor, "k n"], shape: torch.Size
) -> RankOne | LowRank | Dense:
    """Vectors that perturbations share go through the matrix, and rows given in full; coefficients stay."""
    if isinstance(difference, Segment):
        return _segment_through(difference, matrix, shape)
    if isinstance(difference, LowRank):
        base = None if difference.rows is None else difference.rows.times(matrix)
        return replace(difference, vectors=difference.vectors @ matrix, rows=base, shape=shape)
    if len(difference.directions) > difference.count:
        difference = difference.with_used_directions()
    given = 0 if difference.rows is None else len(difference.rows)
    difference.require_room(given + difference.directions.shape[:2].numel(), shape[-1])
    directions, turned = F.linear(difference.directions, matrix.t()), matrix.t()
    rows = None if difference.rows is None else F.linear(difference.rows, turned)
    return replace(difference, directions=directions, rows=rows, shape=shape)


def _segment_through(difference: Segment, matrix: Num[Tensor, "k n"], shape: torch.Size) -> LowRank | Dense:
    """A segment meets as many rows of the matrix as it is wide, which all of its perturbations share."""
    width, rows = difference.delta.shape[-1], shape[:-1].numel()
    first, *others = runs_of(difference.segments)
    parts = matrix.reshape(-1, width, matrix.shape[1])
    vectors = parts[difference.segments] if others else parts[first[0]].unsqueeze(0)
    out = LowRank(difference.delta, vectors, shape)
    return out if 2 * width <= min(rows, shape[-1]) else Dense(out.dense())


def _matrix_change(a: Operand, difference: Difference, shape: torch.Size) -> Difference:
    """``(a + da) dB`` for a difference of a matrix B ``[k, n]``: on one column if B's is."""
    last = len(shape) - 1
    if isinstance(difference, OneHot):
        features, columns = difference.positions()
        picked = _features(a, features)
        return Channel(last, columns, picked * _beside(difference.values, picked), shape)
    if isinstance(difference, Channel) and difference.axis == 1 and a.difference is None:
        delta = (a.base @ difference.delta.t()).movedim(-1, 0)
        return Channel(last, difference.channels, delta, shape)
    if isinstance(difference, Channel) and difference.axis == 0:
        picked = _features(a, difference.channels)
        each = torch.arange(difference.count, device=picked.device)
        return RankOne(picked, difference.delta.unsqueeze(1), each, shape)
    dense = difference.dense()
    if a.difference is None:
        return Dense(torch.func.vmap(torch.matmul, in_dims=(None, 0))(a.base, dense))
    return Dense(torch.func.vmap(torch.matmul)(a.base + a.difference.dense(), dense))


def _features(a: Operand, features: Shaped[Tensor, " p"]) -> Num[Tensor, "p ..."]:
    """One feature (entry of the last dimension) of ``a + da`` for each perturbation."""
    picked = a.value.channel_first(a.base.dim() - 1)[features]
    if a.difference is None:
        return picked
    dense = a.difference.dense()
    index = features.reshape(-1, *(1 for _ in a.base.shape)).expand(*dense.shape[:-1], 1)
    return picked + dense.gather(-1, index).squeeze(-1)


def _beside(values: Num[Tensor, " p"], like: Num[Tensor, "p ..."]) -> Num[Tensor, "p ..."]:
    """One number for each perturbation, broadcastable against ``like``."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


def _turned(difference: Difference) -> Difference:
    """The difference of a transposed matrix."""
    if isinstance(difference, OneHot):
        height, width = difference.shape
        indices = mapped(difference.indices, lambda i: i % width * height + i // width)
        return OneHot(indices, difference.values, torch.Size((width, height)))
    if isinstance(difference, Channel):
        shape = torch.Size(reversed(difference.shape))
        return Channel(1 - difference.axis, difference.channels, difference.delta, shape)
    return Dense(difference.dense().mT)


@rule(
    aten.mm.default,
    aten.bmm.default,
    aten.matmul.default,
    aten.mv.default,
    aten.dot.default,
    rank_one=True,
    low_rank=True,
)
def matmul(call: Call, a: Operand, b: Operand) -> Outcome:
    """``a b``."""
    shape = call.output.base.shape
    if a.base.dim() < 2 or b.base.dim() < 2:
        if isinstance(a.difference, OneHot) and a.base.dim() == 2 and b.difference is None:
            rows, features = a.difference.positions()
            return OneHot(rows, a.difference.values * b.base[features], shape)
        return Dense(multilinear(torch.matmul, (a, b)))
    if b.base.dim() == 2:
        through = None if a.difference is None else through_matrix(a.difference, b.base, shape)
        own = None if b.difference is None else _matrix_change(a, b.difference, shape)
        return _sum(through, own)
    if a.difference is not None and b.difference is not None:
        return Dense(multilinear(torch.matmul, (a, b)))
    if a.difference is not None:
        return through_stack(a.difference, b.base, shape)
    assert b.difference is not None
    turned = torch.Size((*shape[:-2], shape[-1], shape[-2]))
    return _mirrored(through_stack(_mirrored(b.difference), a.base.mT, turned))


def _mirrored(difference: Difference) -> Difference:
    """The difference of a stack of matrices, each of them transposed."""
    if isinstance(difference, (Dense, RankOne, Segment, LowRank)):
        return Dense(difference.dense().mT)
    ndim = len(difference.shape)
    shape = torch.Size((*difference.shape[:-2], difference.shape[-1], difference.shape[-2]))
    if isinstance(difference, OneHot):
        *lead, row, column = difference.positions()
        index = torch.zeros_like(row)
        for position, size in zip((*lead, column, row), shape, strict=True):
            index = index * size + position
        return OneHot(index, difference.values, shape)
    swapped = {ndim - 1: ndim - 2, ndim - 2: ndim - 1}
    on_matrix = difference.axis in swapped
    delta = difference.delta if on_matrix else difference.delta.mT
    return Channel(swapped.get(difference.axis, difference.axis), difference.channels, delta, shape)


def through_stack(difference: Difference, b: Num[Tensor, "*batch k n"], shape: torch.Size) -> Difference:
    """``da B`` for a stack of matrices B that does not differ."""
    ndim, lead = len(shape), len(shape) - len(difference.shape)
    if isinstance(difference, OneHot) and lead == 0 and b.dim() == ndim == 3:
        return _entry_of_stack(difference, b, shape)
    if not isinstance(difference, Channel) or (
        difference.axis < len(difference.shape) - 1
        and difference.shape[difference.axis] != shape[difference.axis + lead]
    ):
        return Dense(_stack_product(difference.dense(), b))
    axis = difference.axis + lead
    if axis == ndim - 2:
        out = (difference.delta.movedim(0, -2) @ b).movedim(-2, 0)
        return Channel(axis, difference.channels, out, shape)
    delta = difference.delta.reshape(difference.count, *(1 for _ in range(lead)), *difference.delta.shape[1:])
    entry = _entry(b, axis - (ndim - b.dim()) if axis < ndim - 1 else b.dim() - 2, difference)
    if axis == ndim - 1:
        return Dense(delta.unsqueeze(-1) * _aligned(entry, ndim).unsqueeze(-2))
    return Channel(axis, difference.channels, delta @ _aligned(entry, ndim), shape)


def _entry(b: Tensor, axis: int, difference: Channel) -> Num[Tensor, "#p ..."]:
    """The part of ``b`` that a channel meets: its entry along ``axis``, or all of b if it broadcasts that dimension."""
    if axis < 0:
        return b.unsqueeze(0)
    if b.shape[axis] == 1:
        return b.squeeze(axis).unsqueeze(0)
    return Channel(axis, difference.channels, difference.delta, b.shape).of(b)


def _aligned(stacked: Num[Tensor, "#p ..."], ndim: int) -> Num[Tensor, "#p ..."]:
    """With dimensions of length 1 behind the first, ``ndim`` in all."""
    return stacked.reshape(stacked.shape[0], *(1 for _ in range(ndim - stacked.dim())), *stacked.shape[1:])


def _entry_of_stack(difference: OneHot, b: Num[Tensor, "batch k n"], shape: torch.Size) -> Channel:
    """One row of one product: all products but one stay as they are."""
    index, row, feature = difference.positions()
    line = difference.values.unsqueeze(1) * b[index, feature]
    if shape[0] == 1:
        return Channel(1, row, line.unsqueeze(1), shape)
    delta = line.new_zeros(difference.count, *shape[1:])
    delta[torch.arange(len(row), device=row.device), row] = line
    return Channel(0, index, delta, shape)


def _stack_product(a: Num[Tensor, "p *lead m k"], b: Num[Tensor, "*batch k n"]) -> Num[Tensor, "p *out m n"]:
    """``a b``, perturbations laid beside the rows where that copies less than one B for each of them."""
    if b.dim() > a.dim() - 1:
        a = a.reshape(a.shape[0], *(1 for _ in range(b.dim() + 1 - a.dim())), *a.shape[1:])
    if a.shape[-2] >= b.shape[-1]:
        return a @ b
    rows = a.movedim(0, -3)
    out = rows.flatten(-3, -2) @ b
    return out.reshape(*out.shape[:-2], *rows.shape[-3:-1], out.shape[-1]).movedim(-3, 0)


def _scaled_sum(product: Difference | None, bias: Operand, shape: torch.Size, beta: float, alpha: float) -> Outcome:
    """``beta bias + alpha product``; a bias times 0 plays no part, whatever its values."""
    parts: list[Difference | None] = []
    if product is not None:
        parts.append(product if alpha == 1 else map_delta(product, lambda d: d * alpha))
    if bias.difference is not None and beta != 0:
        change = broadcast(bias.difference, shape)
        parts.append(change if beta == 1 else map_delta(change, lambda d: d * beta))
    return total(parts)


@rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default, rank_one=True, low_rank=True)
def addmm(call: Call, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Outcome:
    """``beta bias + alpha a b``."""
    product = matmul(call, a, b) if _any(a, b) else None
    assert not isinstance(product, tuple)
    return _scaled_sum(product, bias, call.output.base.shape, beta, alpha)


def _addbmm(a: Num[Tensor, "batch m k"], b: Num[Tensor, "batch k n"]) -> Num[Tensor, "m n"]:
    return (a @ b).sum(0)


def _product_of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Outcome]:
    def apply(call: Call, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Outcome:
        """``beta bias + alpha product(a, b)``."""
        product = Dense(multilinear(function, (a, b))) if _any(a, b) else None
        return _scaled_sum(product, bias, call.output.base.shape, beta, alpha)

    return apply


rule(aten.addbmm.default)(_product_of(_addbmm))
rule(aten.addr.default)(_product_of(torch.outer))


@rule(
    aten.outer.default,
    aten.ger.default,
    aten.kron.default,
    aten.vdot.default,
    aten.linalg_vecdot.default,
    aten.linalg_cross.default,
)
def product(call: Call, a: Operand, b: Operand, **options: Any) -> Outcome:
    """Other products of two tensors."""
    return Dense(multilinear(lambda x, y: call.node.target(x, y, **options), (a, b)))


@rule(aten.bilinear.default)
def bilinear_layer(call: Call, a: Operand, b: Operand, weight: Operand, bias: Operand | None = None) -> Outcome:
    """``a^T W_o b + bias`` for each output o; a one-hot W reaches one output."""
    shape = call.output.base.shape
    parts: list[Difference | None] = []
    if isinstance(weight.difference, OneHot):
        outputs, of_a, of_b = weight.difference.positions()
        picked = _features(a, of_a) * _features(b, of_b)
        parts.append(Channel(len(shape) - 1, outputs, picked * _beside(weight.difference.values, picked), shape))
        weight = Operand(weight.value, None)
    if _any(a, b, weight):
        parts.append(Dense(multilinear(_bilinear_form, (a, b, weight))))
    return _added_bias(total(parts), bias, shape)


def _bilinear_form(
    a: Num[Tensor, "*lead i"], b: Num[Tensor, "*lead j"], weight: Num[Tensor, "o i j"]
) -> Num[Tensor, "*lead o"]:
    return torch.einsum("...i,oij,...j->...o", a, weight, b)
