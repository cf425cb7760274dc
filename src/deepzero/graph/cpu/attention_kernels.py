"""Attention on a CPU, in a compiled loop over blocks that stay in the cache.

Legend: p perturbations, lead: samples and heads, the last of them heads; l queries, s keys, e features of queries and
keys, f of values.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.attention_operands import Pair, tensors_of


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
    """The change of ``softmax(factor q k^T + mask) v`` where q or k differs.

    None if leading dimensions differ, nothing is there to attend to, or the loops do not know the type.
    """
    tensors, first = tensors_of(query, key, value, weights), query[1] if query[1] is not None else key[1]
    known = weights.device.type == "cpu" and weights.dtype in (torch.float32, torch.float64)
    if first is None or tensors is None or not known or any(t.dtype != weights.dtype for t in tensors):
        return None
    lead = weights.shape[:-2]
    heads = lead[-1] if len(lead) > 1 else 1
    count, samples, (rows, features) = len(first), lead.numel() // heads, (weights.shape[-2], value[0].shape[-1])
    out = weights.new_empty(count, samples, rows, heads, features)
    changes = [_by_position(change, heads, base) for base, change in (query, key, value)]
    bases = [_by_position(base.unsqueeze(0), heads, base)[0] for base, _ in (query, key, value)]
    scores = [t.reshape(samples, heads, *t.shape[-2:]).contiguous() for t in (weights, logarithms)]
    arrays = [t.numpy() for t in (*changes, *bases)]
    number = arrays[0].dtype.type(factor)
    compiled().attention_changes(*arrays, number, *(t.numpy() for t in scores), out.numpy())
    return out.transpose(2, 3).reshape(count, *lead, rows, features)


def _by_position(
    stack: Float[Tensor, "p *lead n e"] | None, heads: int, like: Tensor
) -> Float[Tensor, "count samples positions {heads} features"] | Float[Tensor, "0 1 1 1 1"]:
    """Heads side by side within a position, as they are in front of attention and behind: seldom a copy."""
    if stack is None:
        return like.new_empty(0, 1, 1, 1, 1)
    return stack.reshape(len(stack), -1, heads, *stack.shape[-2:]).transpose(2, 3).contiguous()
