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
"""A base value and its change, if any; the loops write into neither."""


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where attention first differs."""
    from deepzero.graph.cpu import attention_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


def attention(
    query: Pair,
    key: Pair,
    value: Pair,
    factor: float,
    weights: Float[Tensor, "*lead l s"],
    logarithms: Float[Tensor, "*lead l s"],
) -> Float[Tensor, "p *lead l f"] | None:
    """The change of ``softmax(factor q k^T + mask) v`` where q or k differs, by blocks of perturbations.

    None if leading dimensions differ, nothing is there to attend to, or the loops do not know the type.
    """
    first = query[1] if query[1] is not None else key[1]
    tensors = [t for pair in (query, key, value) for t in pair if t is not None]
    lead = weights.shape[:-2]
    alike = all(t.shape[-2 - len(lead) : -2] == lead and t.dtype == weights.dtype for t in tensors)
    known = weights.device.type == "cpu" and weights.dtype in (torch.float32, torch.float64)
    if first is None or not alike or not known or any(t.numel() == 0 for t in (weights, *tensors)):
        return None
    blocks = _Blocks(query, key, value, factor, weights, logarithms)
    out = _by_position(first.shape[0], (*weights.shape[:-1], value[0].shape[-1]), weights)
    together = max(1, CACHED // int(weights.nbytes))
    for start in range(0, first.shape[0], together):
        part = out[start : start + together]
        part.copy_(blocks.change(start, start + part.shape[0]))
    return out


def _by_position(count: int, shape: tuple[int, ...], like: Tensor) -> Float[Tensor, "p *lead l f"]:
    """Uninitialised; heads, the last leading dimension, lie side by side within a position: there they are joined."""
    if len(shape) < 4:
        return like.new_empty(count, *shape)
    *lead, heads, rows, features = shape
    return like.new_empty(count, *lead, rows, heads, features).transpose(-3, -2)


class _Blocks:
    """The arguments of :func:`attention`, leading dimensions flattened."""

    def __init__(self, query: Pair, key: Pair, value: Pair, factor: float, weights: Tensor, logarithms: Tensor) -> None:
        self._lead, self._factor = weights.shape[:-2], factor
        self._weights, self._logarithms = (t.reshape(-1, *t.shape[-2:]).contiguous() for t in (weights, logarithms))
        self._query, self._key, self._value = (b.reshape(-1, *b.shape[-2:]) for b, _ in (query, key, value))
        self._changes = (query[1], key[1], value[1])

    def change(self, start: int, stop: int) -> Float[Tensor, "g *lead l f"]:
        """The change by some of the perturbations: ``dw v + (w + dw) dv``, w being the softmax."""
        dq, dk, dv = (self._stacked(change, start, stop) for change in self._changes)
        dw = self._weights_change(dq, dk)
        out = torch.bmm(dw.flatten(1, 2), self._value).view(*dw.shape[:-1], -1)
        if dv is not None:
            moved = dw.add_(self._weights.unsqueeze(1))
            out.flatten(0, 1).baddbmm_(moved.flatten(0, 1), dv.flatten(0, 1))
        return out.view(*self._lead, *out.shape[1:]).movedim(-3, 0)

    def _stacked(self, change: Tensor | None, start: int, stop: int) -> Float[Tensor, "m g n e"] | None:
        """Perturbations behind the leading dimensions, in memory of its own."""
        if change is None:
            return None
        part = change[start:stop].movedim(0, -3)
        return torch.empty_like(part, memory_format=torch.contiguous_format).copy_(part).view(-1, *part.shape[-3:])

    def _weights_change(self, dq: Tensor | None, dk: Tensor | None) -> Float[Tensor, "m g l s"]:
        """The softmax's, by ``dq k^T + (q + dq) dk^T``."""
        scores: Tensor | None = None
        if dq is not None:
            scores = torch.bmm(dq.flatten(1, 2), self._key.mT).view(*dq.shape[:-1], -1)
        if dk is not None:
            shape = (len(dk), dk.shape[1], *self._query.shape[1:])
            moved = self._query.unsqueeze(1).expand(shape) if dq is None else dq.add_(self._query.unsqueeze(1))
            factors = (moved.flatten(0, 1), dk.flatten(0, 1).mT)
            product = torch.bmm(*factors) if scores is None else scores.flatten(0, 1).baddbmm_(*factors)
            scores = product.view(*moved.shape[:-1], -1)
        assert scores is not None
        dw = torch.empty_like(scores)
        arrays = [t.numpy() for t in (self._weights, self._logarithms, dw.flatten(0, 1))]
        compiled().softmax_changes(scores.flatten(0, 1).numpy(), self._factor, *arrays)
        return dw
