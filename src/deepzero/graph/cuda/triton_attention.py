"""Attention as a Triton program: the changes of scores, softmax and output, without a score in memory.

Keys are gone through in blocks, twice: for the change of each row's normaliser, then for the weights and the output.
Scores are made of products in both passes, and stay in registers.

Floor: of each perturbation the differences of q, k and v are read once for each block of queries, and ``[L, F]`` is
written; operations ``4 L S E`` for each operand of the scores that differs and ``2 L S F`` behind them, twice that
where the values differ, in float32 outside of the matrix units unless TF32 is allowed. Base values come from the cache,
where another perturbation has just had them.

Legend: P perturbations, U samples and heads, L queries, S keys, E features of queries and keys, F of values.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepzero.graph.cuda.triton_rows import OVERFLOW, expm1, log1p


@triton.jit
def block_of(start, row, width, length, entry):
    """Addresses of ``[rows, entries]`` of a matrix that begins at ``start``, and which of them there are."""
    mask = (row < length)[:, None] & (entry < width)[None, :]
    return start + row.to(tl.int64)[:, None] * width + entry[None, :], mask


@triton.jit
def looked_up(moved, a, keys, d_keys, place, entry, length, inner, DQ: tl.constexpr, DK: tl.constexpr):
    """``a k + moved dk`` for one key of each query."""
    found = tl.zeros((moved.shape[0],), tl.float32)
    if DQ:
        at, mask = block_of(keys, place, inner, length, entry)
        found += tl.sum(a * tl.load(at, mask=mask, other=0.0), 1)
    if DK:
        at, mask = block_of(d_keys, place, inner, length, entry)
        found += tl.sum(moved * tl.load(at, mask=mask, other=0.0), 1)
    return found


@triton.jit
def of_keys(
    a, moved, k, dk, factor, chances, logarithms, less, row, key, entry, rows, keys, inner,
    DQ: tl.constexpr, DK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of scores' changes ``factor (a k^T + moved dk^T) - less``, their base softmax and its logarithms."""
    at, mask = block_of(k, key, inner, keys, entry)
    d = tl.zeros((row.shape[0], key.shape[0]), tl.float32)
    if DQ:
        d = tl.dot(a, tl.trans(tl.load(at, mask=mask, other=0.0)), d, input_precision=PRECISION)
    if DK:
        at, mask = block_of(dk, key, inner, keys, entry)
        d = tl.dot(moved, tl.trans(tl.load(at, mask=mask, other=0.0)), d, input_precision=PRECISION)
    at, mask = block_of(chances, row, keys, rows, key)
    chance = tl.load(at, mask=mask, other=0.0)
    at, mask = block_of(logarithms, row, keys, rows, key)
    logs = tl.load(at, mask=mask, other=float("-inf"))
    return tl.where(mask, d * factor - less[:, None], 0.0), chance, logs


@triton.jit
def growths(d, chance, logs):
    """``p expm1(d)``, plainly where that would overflow."""
    closed = chance * expm1(tl.minimum(d, OVERFLOW, propagate_nan=tl.PropagateNan.ALL))
    return tl.where(d > OVERFLOW, tl.exp(logs + d) - chance, closed)


@triton.jit
def normalisers(
    a, moved, k, dk, factor, chances, logarithms, less, row, entry, rows, keys, inner,
    DQ: tl.constexpr, DK: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Changes of the rows' ``log sum exp``, ``log1p(sum p expm1(d))``; plainly where little is left of the sum.

    It is 0 for a row that may attend to nothing.
    """
    growth, mass = tl.zeros((row.shape[0],), tl.float32), tl.zeros((row.shape[0],), tl.float32)
    top = tl.full((row.shape[0],), float("-inf"), tl.float32)
    for start in range(0, keys, BS):
        key = start + tl.arange(0, BS)
        d, chance, logs = of_keys(
            a, moved, k, dk, factor, chances, logarithms, less, row, key, entry, rows, keys, inner, DQ, DK, PRECISION
        )
        growth += tl.sum(growths(d, chance, logs), 1)
        new = tl.maximum(top, tl.max(logs + d, 1))
        kept = tl.where(new == float("-inf"), 0.0, new)
        mass = mass * tl.exp(top - kept) + tl.sum(tl.exp(logs + d - kept[:, None]), 1)
        top = new
    return tl.where((growth < -0.5) | (growth > 1e6), top + tl.log(tl.where(mass > 0, mass, 1.0)), log1p(growth))


@triton.jit
def attention(
    dq, dk, dv, q, k, v, factor, weights, logarithms, chosen, out, units, rows, keys, inner, features,
    DQ: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BL: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
    BF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``softmax(factor (q + dq) (k + dk)^T + mask) (v + dv) - softmax(factor q k^T + mask) v``, q or k moved.

    ``dq [P, U, L, E]`` and so on, base values without P; ``weights, logarithms [U, L, S]`` the base softmax and its
    logarithms, -inf where nothing may be attended to; ``chosen [U, L]`` a key of each query, from whose score changes
    are counted: the likeliest one, so that nothing cancels; ``out [P, U, L, F]``.
    """
    tiles = tl.cdiv(rows, BL)
    unit = (tl.program_id(0) // tiles).to(tl.int64)
    here = tl.program_id(1).to(tl.int64) * units + unit
    row, entry, feature = tl.program_id(0) % tiles * BL + tl.arange(0, BL), tl.arange(0, BE), tl.arange(0, BF)
    k, dk = k + unit * keys * inner, dk + here * keys * inner
    chances, logarithms = weights + unit * rows * keys, logarithms + unit * rows * keys

    at, mask = block_of(q + unit * rows * inner, row, inner, rows, entry)
    moved = tl.load(at, mask=mask, other=0.0)
    a = tl.zeros_like(moved)
    if DQ:
        at, mask = block_of(dq + here * rows * inner, row, inner, rows, entry)
        a = tl.load(at, mask=mask, other=0.0)
        moved += a

    pick = tl.load(chosen + unit * rows + row, mask=row < rows, other=0)
    less = factor * looked_up(moved, a, k, dk, pick, entry, keys, inner, DQ, DK)
    less += normalisers(
        a, moved, k, dk, factor, chances, logarithms, less, row, entry, rows, keys, inner, DQ, DK, BS, PRECISION
    )
    result = tl.zeros((BL, BF), tl.float32)
    for start in range(0, keys, BS):
        key = start + tl.arange(0, BS)
        d, chance, logs = of_keys(
            a, moved, k, dk, factor, chances, logarithms, less, row, key, entry, rows, keys, inner, DQ, DK, PRECISION
        )
        change = growths(d, chance, logs)
        there, seen = block_of(v + unit * keys * features, key, features, keys, feature)
        result = tl.dot(change, tl.load(there, mask=seen, other=0.0), result, input_precision=PRECISION)
        if DV:
            beside, _ = block_of(dv + here * keys * features, key, features, keys, feature)
            moving = tl.load(beside, mask=seen, other=0.0)
            result = tl.dot(chance + change, moving, result, input_precision=PRECISION)
    at, mask = block_of(out + here * rows * features, row, features, rows, feature)
    tl.store(at, result, mask=mask)
