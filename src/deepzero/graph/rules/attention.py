"""Scaled dot-product attention: ``softmax(q k^T scale + mask) v``, each product and the softmax free of cancellation.

Every entry of a leading dimension (sample, head) is attended to on its own. A difference on one head of some operands
therefore stays on that head, and only that head is computed.

Legend: p perturbations, l queries, s keys, e features, lead: samples and heads; # is 1 where a base value is the same
for all perturbations; m rows, k summed over, n columns of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from deepzero.errors import GraphError
from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, ChannelEntry, Dense, Difference, same_channels
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.frames import Moving
from deepzero.graph.rules.pointwise import product_change

aten = torch.ops.aten


@dataclass(frozen=True)
class AttentionWeights:
    """Base attention weights ``[*lead, l, s]``, their logarithms, and the rows that may attend to nothing (or None)."""

    weights: Float[Tensor, "*lead l s"]
    logarithms: Float[Tensor, "*lead l s"]
    dead: Bool[Tensor, "*#lead l 1"] | None

    @classmethod
    def of(cls, scores: Float[Tensor, "*lead l s"]) -> AttentionWeights:
        """Of scores that may be minus infinity; a row of nothing else gets the weight 0 everywhere, as in PyTorch."""
        dead = (scores == -math.inf).all(-1, keepdim=True)
        if dead.device.type == "cpu" and not bool(dead.any()):  # a GPU is not waited for
            logarithms = torch.log_softmax(scores, -1)
            return cls(logarithms.exp(), logarithms, None)
        logarithms = torch.log_softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, -math.inf)
        return cls(logarithms.exp(), logarithms, dead)

    def map(self, function: Callable[[Tensor], Tensor]) -> AttentionWeights:
        """The same function (a selection) of all parts."""
        dead = None if self.dead is None else function(self.dead.expand(*self.weights.shape[:-1], 1))
        return AttentionWeights(function(self.weights), function(self.logarithms), dead)

    def change(self, d: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        """``softmax(scores + d) - softmax(scores)``.

        ``p_j (u_j - S) / (1 + S)`` with ``u = expm1(d)`` and ``S = sum_j p_j u_j``; rows where some d is larger than 1,
        so that expm1 could overflow, take the plain form, which does not cancel there.
        """
        small = d.abs().amax(-1, keepdim=True) <= 1 if d.shape[-1] else None
        if small is None or (small.device.type == "cpu" and bool(small.all())):  # a GPU is not waited for
            return self._closed(d)
        moved = (self.logarithms + d) - torch.logsumexp(self.logarithms + d, -1, keepdim=True)
        plain = moved.exp() - self.weights
        if self.dead is not None:
            plain = plain.masked_fill(self.dead, 0.0)
        return torch.where(small, self._closed(d.clamp(-1, 1)), plain)

    def _closed(self, d: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        part = self.weights * torch.expm1(d)
        total = part.sum(-1, keepdim=True)
        return part.addcmul_(self.weights, total, value=-1).div_(1 + total)


def _softmax_of(call: Call, scores: Callable[[], Tensor]) -> AttentionWeights:
    weights: AttentionWeights = call.memo("weights", lambda: AttentionWeights.of(scores()))
    return weights


def grouped_product(a: Float[Tensor, "... m k"], b: Float[Tensor, "... k n"]) -> Float[Tensor, "... m n"]:
    """``a b``, where several heads of a (dimension -3) share one of b (grouped queries)."""
    if a.dim() < 3 or b.dim() < 3 or b.shape[-3] == 1 or a.shape[-3] <= b.shape[-3]:
        return a @ b
    size = (a.shape[-3] // b.shape[-3], a.shape[-2])
    together = a.reshape(*a.shape[:-3], b.shape[-3], size[0] * size[1], a.shape[-1])
    out = together @ b
    return out.reshape(*out.shape[:-3], a.shape[-3], size[1], out.shape[-1])


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
    """Attention with any mask, a mask that differs, grouped queries; only what differs is computed."""
    if dropout_p > 0:
        raise GraphError(
            f"{call.node.name} is attention with dropout inside of one operation, whose mask cannot be drawn again; "
            "it should have been taken apart (deepzero.graph.decompositions)"
        )
    mask_change = difference_of(attn_mask)
    if mask_change is not None and attn_mask is not None and not attn_mask.base.is_floating_point():
        options = {"scale": scale, "enable_gqa": enable_gqa}
        return fallback(call, query, key, value, attn_mask, dropout_p, is_causal, **options)
    factor = 1 / math.sqrt(query.base.shape[-1]) if scale is None else scale
    mask = None if attn_mask is None else attn_mask.base
    weights = _softmax_of(call, lambda: _scores(query.base, key.base, mask, is_causal, factor))
    lead = call.output.base.dim()
    shape = call.output.base.shape
    head = _shared_head((query, key, value), mask_change, lead)
    if head is None:
        q, k, v = (_everywhere(o, lead) for o in (query, key, value))
        change = None if mask_change is None else _aligned(mask_change.dense(), lead + 1)
        return Dense(_change(q, k, v, factor, change, weights.map(_stacked)).expand(-1, *shape))
    alone = mask_change is None and query.difference is None and key.difference is None
    if alone and isinstance(value.difference, ChannelEntry):
        return _of_value_entry(value.difference, head, weights, shape)
    change = _aligned(mask_change.delta, lead) if isinstance(mask_change, Channel) else None
    parts = []
    for one in head.runs():
        q, k, v = (_on_head(o, one) for o in (query, key, value))
        own = None if change is None else change[one.start : one.stop]
        parts.append(_change(q, k, v, factor, own, weights.map(one.pick)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    axis = lead + head.axis
    return Channel(axis, head.channels, out.expand(-1, *shape[:axis], *shape[axis + 1 :]), shape)


def _of_value_entry(
    difference: ChannelEntry, head: _Head, weights: AttentionWeights, shape: torch.Size
) -> ChannelEntry:
    """The output's change where one feature of the values differs: its rows are weighed, and nothing else is."""
    parts = []
    for one in head.runs():
        line, chances = difference.line[one.start : one.stop], one.pick(weights.weights)
        if len(chances) == 1:
            parts.append((chances[0] @ line.movedim(0, -1)).movedim(-1, 0))
        else:
            parts.append((chances @ line.unsqueeze(-1)).squeeze(-1))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    axis = len(shape) + head.axis
    return ChannelEntry(
        axis, head.channels, out.expand(-1, *shape[:axis], *shape[axis + 1 : -1]), difference.places, shape
    )


def _scaled(m: Moving, factor: float) -> Moving:
    return m.map(lambda t: t * factor)


def _change(
    q: Moving, k: Moving, v: Moving, factor: float, mask: Float[Tensor, "p ..."] | None, weights: AttentionWeights
) -> Float[Tensor, "p ..."]:
    """The output's change from stacked operands, of which at least one differs."""
    if mask is None and (q.delta is not None or k.delta is not None):
        out = _by_kernel(q, k, v, factor, weights)
        if out is not None:
            return out
    scores: Tensor | None = None
    if q.delta is not None or k.delta is not None:
        scores = product_change(_scaled(q, factor), k.map(lambda t: t.mT), grouped_product)
    if mask is not None:
        scores = mask if scores is None else scores + mask
    moving = Moving(weights.weights, None if scores is None else weights.change(scores))
    return product_change(moving, v, grouped_product)


def _by_kernel(
    q: Moving, k: Moving, v: Moving, factor: float, weights: AttentionWeights
) -> Float[Tensor, "p ..."] | None:
    """:func:`_change` by a kernel of the device; base values of their own make of perturbations a leading dimension."""
    attention = kernels.on(weights.weights).attention
    if len(weights.weights) == 1:
        query, key, value = ((o.base.squeeze(0), o.delta) for o in (q, k, v))
        return attention(query, key, value, factor, weights.weights.squeeze(0), weights.logarithms.squeeze(0))
    query, key, value = ((o.base, None if o.delta is None else o.delta.unsqueeze(0)) for o in (q, k, v))
    out = attention(query, key, value, factor, weights.weights, weights.logarithms)
    return None if out is None else out.squeeze(0)


def _scores(
    q: Float[Tensor, "... l e"], k: Float[Tensor, "... s e"], mask: Tensor | None, causal: bool, factor: float
) -> Float[Tensor, "... l s"]:
    scores = grouped_product(q * factor, k.mT)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if mask is None:
        return scores
    return torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask


def _stacked(base: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, " 1 *shape"]:
    return base.unsqueeze(0)


def _aligned(delta: Shaped[Tensor, "p ..."], dims: int) -> Shaped[Tensor, "p ..."]:
    """With dimensions of length 1 behind the first, so that ``delta`` broadcasts as its base value does."""
    return delta.reshape(delta.shape[0], *(1 for _ in range(dims - delta.dim())), *delta.shape[1:])


def _everywhere(operand: Operand, lead: int) -> Moving:
    difference = operand.difference
    delta = None if difference is None else _aligned(difference.dense(), lead + 1)
    return Moving(_aligned(operand.base.unsqueeze(0), lead + 1), delta)


@dataclass(frozen=True)
class _Head:
    """The one leading dimension (counted from the end) that differs in one entry, and which entry."""

    axis: int
    like: Channel

    @property
    def channels(self) -> Int64[Tensor, " p"]:
        """The entry of each perturbation."""
        return self.like.channels

    def runs(self) -> list[_Run]:
        """The perturbations of one entry after the other, or all of them where hardly two share one."""
        runs = self.like.runs
        if 2 * len(runs) > self.like.count > 1:
            return [_Run(self.axis, self.channels, 0, self.like.count)]
        return [_Run(self.axis, self.channels[start : start + 1], start, stop) for _, start, stop in runs]


@dataclass(frozen=True)
class _Run:
    """Perturbations ``start`` to ``stop``: at one entry of dimension ``axis``, counted from the end, or one each."""

    axis: int
    entries: Int64[Tensor, " #p"]
    start: int
    stop: int

    def pick(self, base: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "#p ..."]:
        """The base value there."""
        return base.movedim(self.axis, 0).index_select(0, self.entries)


def _shared_head(operands: tuple[Operand, ...], mask: Difference | None, lead: int) -> _Head | None:
    """The entry that all differences sit on, channels of one leading dimension that no operand broadcasts; or None."""
    differences = [o.difference for o in operands if o.difference is not None] + ([] if mask is None else [mask])
    first = differences[0]
    if not isinstance(first, Channel):
        return None
    axis = first.axis - len(first.shape)
    size = first.shape[axis]
    fits = all(o.base.dim() == lead and o.base.shape[axis] == size for o in operands)
    if axis > -3 or not fits or not all(_same_entry(first, other) for other in differences[1:]):
        return None
    return _Head(axis, first)


def _same_entry(first: Channel, other: Difference) -> bool:
    axis = first.axis - len(first.shape)
    if (
        not isinstance(other, Channel)
        or other.axis - len(other.shape) != axis
        or other.shape[axis] != first.shape[axis]
    ):
        return False
    return same_channels(first, Channel(first.axis, other.channels, other.delta, first.shape))


def _on_head(operand: Operand, one: _Run) -> Moving:
    difference = operand.difference
    delta = difference.delta[one.start : one.stop] if isinstance(difference, Channel) else None
    return Moving(one.pick(operand.base), delta)
