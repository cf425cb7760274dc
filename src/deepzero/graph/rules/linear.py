"""Matrix products. Bilinear: ``(x + dx)(W + dW) - xW = dx W + (x + dx) dW``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from deepzero.errors import GraphError
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.rules.base import difference_of, map_delta, rule
from deepzero.graph.rules.pointwise import broadcast, total
from deepzero.graph.rules.softmax import softmax_change

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(call: Call, x: Operand, weight: Operand, bias: Operand | None = None) -> Outcome:
    """``x W^T + b``."""
    shape = call.output.base.shape
    parts: list[Difference | None] = []
    if x.difference is not None:
        parts.append(_through_weight(x.difference, weight.base, shape))
    if weight.difference is not None:
        parts.append(_weight_change(x, weight.difference, shape))
    bias_difference = difference_of(bias)
    if bias_difference is not None:
        parts.append(broadcast(bias_difference, shape))
    return total(parts)


def _through_weight(difference: Difference, weight: Num[Tensor, "o i"], shape: torch.Size) -> Difference:
    last = len(shape) - 1
    if isinstance(difference, Channel) and difference.axis != last:
        return Channel(difference.axis, difference.channels, F.linear(difference.delta, weight), shape)
    if isinstance(difference, Channel):
        columns = weight.t()[difference.channels]
        columns = columns.reshape(difference.count, *(1 for _ in difference.delta.shape[1:]), -1)
        return Dense(difference.delta.unsqueeze(-1) * columns)
    return Dense(F.linear(difference.dense(), weight))


def _weight_change(x: Operand, difference: Difference, shape: torch.Size) -> Difference:
    """``(x + dx) dW^T``: for a one-hot dW a multiple of one input feature, on one output channel."""
    moved = x.base.unsqueeze(0) if x.difference is None else x.base + x.difference.dense()
    if not isinstance(difference, OneHot):
        return Dense(
            torch.func.vmap(F.linear, in_dims=(0 if x.difference is not None else None, 0))(
                moved if x.difference is not None else x.base, difference.dense()
            )
        )
    outputs, features = difference.positions()
    if x.difference is None:
        picked = x.value.channel_first(x.base.dim() - 1)[features]
    else:
        picked = moved.movedim(-1, 1)[torch.arange(difference.count, device=features.device), features]
    values = difference.values.reshape(-1, *(1 for _ in picked.shape[1:]))
    return Channel(len(shape) - 1, outputs, picked * values, shape)


def bilinear(
    product: Callable[[Tensor, Tensor], Tensor], a: Tensor, da: Tensor | None, b: Tensor, db: Tensor | None
) -> Tensor:
    """``product(a + da, b + db) - product(a, b)``, stacked over perturbations."""
    change: Tensor | None = None
    if da is not None:
        change = torch.func.vmap(product, in_dims=(0, None))(da, b)
    if db is not None:
        moved = a if da is None else a + da
        second = torch.func.vmap(product, in_dims=(None if da is None else 0, 0))(moved, db)
        change = second if change is None else change + second
    assert change is not None
    return change


def _dense_or_none(operand: Operand) -> Num[Tensor, " p *shape"] | None:
    return None if operand.difference is None else operand.difference.dense()


@rule(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def matmul(call: Call, a: Operand, b: Operand) -> Outcome:
    """``a b``."""
    if b.difference is None and b.base.dim() == 2 and a.base.dim() >= 2:
        assert a.difference is not None
        return _through_weight(a.difference, b.base.t(), call.output.base.shape)
    if isinstance(b.difference, OneHot) and b.base.dim() == 2 and a.base.dim() >= 2:
        parts: list[Difference | None] = [_weight_change(a, _transposed(b.difference), call.output.base.shape)]
        if a.difference is not None:
            parts.append(_through_weight(a.difference, b.base.t(), call.output.base.shape))
        return total(parts)
    return Dense(bilinear(torch.matmul, a.base, _dense_or_none(a), b.base, _dense_or_none(b)))


def _transposed(difference: OneHot) -> OneHot:
    """The one-hot of the transposed matrix."""
    rows, columns = difference.positions()
    height, width = difference.shape
    return OneHot(columns * height + rows, difference.values, torch.Size((width, height)))


@rule(aten.addmm.default)
def addmm(call: Call, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Outcome:
    """``beta bias + alpha a b``."""
    parts: list[Difference | None] = []
    if a.difference is not None or b.difference is not None:
        product = matmul(call, a, b)
        assert isinstance(product, (Channel, Dense))
        parts.append(map_delta(product, lambda d: d * alpha))
    if bias.difference is not None:
        parts.append(map_delta(broadcast(bias.difference, call.output.base.shape), lambda d: d * beta))
    return total(parts)


@rule(aten.scaled_dot_product_attention.default)
def attention(
    call: Call,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Outcome:
    """``softmax(q k^T / sqrt(E) + mask) v``, each product and the softmax in cancellation-free form."""
    if dropout_p > 0 or enable_gqa or difference_of(attn_mask) is not None:
        raise GraphError(
            "scaled_dot_product_attention has a difference rule only without dropout, grouped queries and a "
            "trained mask; use dropout_p=0 or evaluator=dz.SequentialEvaluator()"
        )
    factor = 1 / math.sqrt(query.base.shape[-1]) if scale is None else scale
    scores = _scores(query.base, key.base, attn_mask.base if attn_mask else None, is_causal, factor)
    weights = torch.softmax(scores, dim=-1)
    changed = None
    if query.difference is not None or key.difference is not None:
        changed = bilinear(
            lambda q, k: q @ k.transpose(-2, -1), query.base, _dense_or_none(query), key.base, _dense_or_none(key)
        )
        changed = softmax_change(weights, changed * factor, dim=-1)
    return Dense(bilinear(torch.matmul, weights, changed, value.base, _dense_or_none(value)))


def _scores(
    q: Float[Tensor, "... l e"], k: Float[Tensor, "... s e"], mask: Any, causal: bool, factor: float
) -> Float[Tensor, "... l s"]:
    scores = q @ k.transpose(-2, -1) * factor
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
