"""Attention on an NVIDIA GPU, in float32, in a program that keeps no scores.

Legend: p perturbations, lead: samples and heads; l queries, s keys, e features of queries and keys, f of values.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jaxtyping import Float
from torch import Tensor

from deepzero.graph import precision
from deepzero.graph.attention_operands import Pair, tensors_of
from deepzero.graph.cuda.cuda_kernels import INDEXABLE, applies, triton

WIDEST = 128
"""Features of a query or a value that a program takes at once, at most."""
QUERIES = 16
"""Queries of a block."""
BLOCK = 4096
"""Entries of a block of keys, at most: with more, a program keeps registers in memory."""


@cache
def programs() -> Any:
    """The program."""
    from deepzero.graph.cuda import triton_attention  # noqa: PLC0415 - imports Triton

    return triton_attention


def attention(
    query: Pair,
    key: Pair,
    value: Pair,
    factor: float,
    weights: Float[Tensor, "*lead l s"],
    logarithms: Float[Tensor, "*lead l s"],
) -> Float[Tensor, "p *lead l f"] | None:
    """The change of ``softmax(factor q k^T + mask) v`` where q or k differs.

    None if leading dimensions differ, nothing is there to attend to, features are too many, or for other dtypes.
    """
    tensors, first = tensors_of(query, key, value, weights), query[1] if query[1] is not None else key[1]
    lead, (rows, keys) = weights.shape[:-2], weights.shape[-2:]
    inner, features = query[0].shape[-1], value[0].shape[-1]
    if first is None or tensors is None or not applies(*tensors):
        return None
    if max(inner, features) > WIDEST or max(t.numel() for t in (weights, query[0], key[0], value[0])) >= INDEXABLE:
        return None
    out = first.new_empty(len(first), *lead, rows, features)
    none = first.new_empty(0)
    changes = [none if change is None else change.contiguous() for _, change in (query, key, value)]
    bases = [base.contiguous() for base, _ in (query, key, value)]
    chosen = weights.argmax(-1)
    programs().attention[(triton().cdiv(rows, QUERIES) * lead.numel(), len(first))](
        *changes, *bases, factor, weights.contiguous(), logarithms.contiguous(), chosen, out,
        lead.numel(), rows, keys, inner, features,
        DQ=query[1] is not None, DK=key[1] is not None, DV=value[1] is not None,
        BL=QUERIES, BS=min(BLOCK // _padded(max(inner, features)), 64, _padded(keys)),
        BE=_padded(inner), BF=_padded(features),
        PRECISION="tf32" if precision.current().multiplies_in_tf32 else "ieee",
    )  # fmt: skip
    return out


def _padded(size: int) -> int:
    """The sides of a product's blocks are powers of two, and no less than 16."""
    return max(16, int(triton().next_power_of_2(size)))
