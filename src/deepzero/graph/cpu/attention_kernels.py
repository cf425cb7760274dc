"""Attention on a CPU: matrix products of BLAS and a compiled softmax on blocks that stay in the cache.

Legend: p perturbations, of which g are computed together; lead: samples and heads, m of them in all; l queries, s keys,
e features of queries and keys, f of values.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CACHED = 1 << 18
"""Bytes of scores that are computed together."""

Pair = tuple[Float[Tensor, "*lead n e"], Float[Tensor, "p *lead n e"] | None]
"""A base value and its change, if any."""


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where attention first differs."""
    from deepzero.graph.cpu import attention_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


def attention(
    query: Pair,
    key: Pair,
    value: Pair,
    weights: Float[Tensor, "*lead l s"],
    logarithms: Float[Tensor, "*lead l s"],
) -> Float[Tensor, "p *lead l f"] | None:
    """The change of ``softmax(q k^T) v``; None if leading dimensions differ, or the type is not known to the loops."""
    tensors = [t for pair in (query, key, value) for t in pair if t is not None]
    lead, count = weights.shape[:-2], next(d for _, d in (query, key, value) if d is not None).shape[0]
    alike = all(t.shape[-2 - len(lead) : -2] == lead and t.dtype == weights.dtype for t in tensors)
    if not alike or weights.device.type != "cpu" or weights.dtype not in (torch.float32, torch.float64):
        return None
    if weights.numel() == 0 or value[0].shape[-1] == 0 or query[0].shape[-1] == 0:
        return None
    blocks = _Blocks(query, key, value, weights, logarithms)
    out = _by_position(count, (*weights.shape[:-1], value[0].shape[-1]), weights)
    together = max(1, CACHED // int(weights.nbytes))
    for start in range(0, count, together):
        blocks.change(start, min(start + together, count), out)
    return out


def _by_position(count: int, shape: tuple[int, ...], like: Tensor) -> Float[Tensor, "p *lead l f"]:
    """Uninitialised; heads, the last leading dimension, lie side by side within a position, as behind them they are joined."""
    if len(shape) < 4:
        return like.new_empty(count, *shape)
    *lead, heads, rows, features = shape
    return like.new_empty(count, *lead, rows, heads, features).transpose(-3, -2)


class _Blocks:
    """The arguments of :func:`attention`, leading dimensions flattened."""

    def __init__(self, query: Pair, key: Pair, value: Pair, weights: Tensor, logarithms: Tensor) -> None:
        self.lead = weights.shape[:-2]
        self.weights, self.logarithms = (t.flatten(0, -3) if self.lead else t[None] for t in (weights, logarithms))
        self.weights, self.logarithms = self.weights.contiguous(), self.logarithms.contiguous()
        (self.query, self.dq), (self.key, self.dk), (self.value, self.dv) = (
            (base.reshape(-1, *base.shape[-2:]), change) for base, change in (query, key, value)
        )

    def change(self, start: int, stop: int, out: Float[Tensor, "p *lead l f"]) -> None:
        """Write the change of some perturbations to their place in ``out``."""
        group = stop - start
        dq, dk, dv = (self._stacked(d, start, stop) for d in (self.dq, self.dk, self.dv))
        moved, change = None, self._weights_change(dq, dk, group)
        if change is None:
            assert dv is not None
            result = torch.bmm(self.weights.repeat_interleave(group, 0), dv.flatten(0, 1))
        else:
            result = torch.bmm(change.view(len(self.weights), -1, change.shape[-1]), self.value)
            result = result.view(-1, change.shape[1], self.value.shape[-1])
            if dv is not None:
                moved = change.view(len(self.weights), group, *change.shape[1:]) + self.weights.unsqueeze(1)
                result = result.baddbmm_(moved.flatten(0, 1), dv.flatten(0, 1))
        result = result.view(*self.lead, group, *result.shape[1:])
        out[start:stop].copy_(result.movedim(-3, 0))

    def _stacked(self, change: Tensor | None, start: int, stop: int) -> Float[Tensor, "m g n e"] | None:
        """Perturbations behind the leading dimensions, in contiguous memory."""
        if change is None:
            return None
        return change[start:stop].movedim(0, -3).reshape(-1, stop - start, *change.shape[-2:]).contiguous()

    def _weights_change(self, dq: Tensor | None, dk: Tensor | None, group: int) -> Float[Tensor, "m*g l s"] | None:
        """``da k^T + (q + dq) dk^T``, and the change of the softmax by it."""
        if dq is None and dk is None:
            return None
        rows, width = self.weights.shape[-2:]
        scores = self.weights.new_empty(len(self.weights) * group, rows, width)
        if dq is not None:
            torch.bmm(dq.flatten(1, 2), self.key.mT, out=scores.view(len(self.weights), -1, width))
        if dk is not None:
            shape = (len(self.query), group, *self.query.shape[1:])
            moved = self.query.unsqueeze(1).expand(shape) if dq is None else self.query.unsqueeze(1) + dq
            product = (moved.flatten(0, 1), dk.flatten(0, 1).mT)
            scores = torch.bmm(*product, out=scores) if dq is None else scores.baddbmm_(*product)
        change = torch.empty_like(scores)
        compiled().softmax_changes(scores.numpy(), self.weights.numpy(), self.logarithms.numpy(), change.numpy())
        return change
