"""Compiled loops behind :mod:`deepzero.graph.cpu.attention_kernels`: attention block by block, each in the cache.

A block is one head of one sample of one perturbation. Its products are taken two rows and four terms at a time, as far
as a row may attend, and between them nothing leaves the cache.

Legend: P perturbations, B samples, H heads, L queries, S keys, E features of queries and keys, F of values; an operand
that does not differ has no perturbations. A block of an operand is ``[L, E]``, ``[S, E]`` or ``[S, F]``.
"""

from __future__ import annotations

import math

import numpy as np

from deepzero.graph.cpu.compilation import compiled
from deepzero.graph.cpu.vector_math import exp, expm1

GRAIN = 8
"""Columns of a product are taken in multiples of so many: what a vector holds."""


@compiled
def attention_changes(dq, dk, dv, q, k, v, factor, weights, logarithms, out):
    """``out[p] = softmax(factor (q + dq) (k + dk)^T + mask) (v + dv) - softmax(factor q k^T + mask) v``, q or k moved.

    ``dq, q [P, B, L, H, E]`` and so on, base values without P; ``weights, logarithms [B, H, L, S]``: the base softmax
    and its logarithms, -inf where nothing may be attended to; ``out [P, B, L, H, F]``.
    """
    count, samples, rows, heads, features = out.shape
    keys, inner = k.shape[1], k.shape[3]
    queries, moved, result = _block(rows, inner, q), _block(rows, inner, q), _block(rows, features, q)
    turned, other, scores = _block(inner, keys, q), _block(inner, keys, q), _block(rows, keys, q)
    values, dvalues, change = _block(keys, features, q), _block(keys, features, q), _block(rows, keys, q)
    reach, full, wide = np.empty(rows, np.int64), np.full(rows, inner), np.full(rows, features)
    for b in range(samples):
        for h in range(heads):
            p, logs = weights[b, h], logarithms[b, h]
            _measure(logs, reach)
            _take(q, b, h, queries)
            _take_turned(k, b, h, turned)
            _take(v, b, h, values)
            for n in range(count):
                scores[:] = 0
                moved[:] = queries
                if dq.shape[0] > 0:
                    _take(dq[n], b, h, moved)
                    _add_product(moved, turned, full, reach, scores)
                    moved += queries
                if dk.shape[0] > 0:
                    _take_turned(dk[n], b, h, other)
                    _add_product(moved, other, full, reach, scores)
                _softmax_change(scores, factor, p, logs, change)
                result[:] = 0
                _add_product(change, values, reach, wide, result)
                if dv.shape[0] > 0:
                    _take(dv[n], b, h, dvalues)
                    change += p
                    _add_product(change, dvalues, reach, wide, result)
                for r in range(rows):
                    for f in range(features):
                        out[n, b, r, h, f] = result[r, f]


@compiled
def _block(rows, columns, like):
    """Memory for a block."""
    return np.empty((rows, columns), like.dtype)


@compiled
def _measure(logs, reach):
    """Keys up to the last that each query may attend to, in whole grains."""
    rows, keys = logs.shape
    lowest = logs.dtype.type(-np.inf)
    for r in range(rows):
        last = keys
        while last > 0 and logs[r, last - 1] == lowest:
            last -= 1
        reach[r] = min(keys, (last + GRAIN - 1) // GRAIN * GRAIN)


@compiled
def _take(stack, b, h, block):
    """The block of a sample and a head."""
    for r in range(block.shape[0]):
        for e in range(block.shape[1]):
            block[r, e] = stack[b, r, h, e]


@compiled
def _take_turned(stack, b, h, block):
    """The block of a sample and a head, transposed."""
    for r in range(block.shape[1]):
        for e in range(block.shape[0]):
            block[e, r] = stack[b, r, h, e]


@compiled
def _add_product(a, b, depth, width, out):
    """``out += a b``, of row r the first ``depth[r]`` terms and ``width[r]`` columns; further terms of it are 0."""
    rows = a.shape[0]
    for r in range(0, rows - 1, 2):
        terms, columns = max(depth[r], depth[r + 1]), max(width[r], width[r + 1])
        whole = terms - terms % 4
        for k in range(0, whole, 4):
            a0, a1, a2, a3 = a[r, k], a[r, k + 1], a[r, k + 2], a[r, k + 3]
            c0, c1, c2, c3 = a[r + 1, k], a[r + 1, k + 1], a[r + 1, k + 2], a[r + 1, k + 3]
            for j in range(columns):
                x0, x1, x2, x3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                out[r, j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                out[r + 1, j] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
        for k in range(whole, terms):
            a0, c0 = a[r, k], a[r + 1, k]
            for j in range(columns):
                out[r, j] += a0 * b[k, j]
                out[r + 1, j] += c0 * b[k, j]
    if rows % 2:
        r = rows - 1
        for k in range(depth[r]):
            a0 = a[r, k]
            for j in range(width[r]):
                out[r, j] += a0 * b[k, j]


@compiled
def _softmax_change(scores, factor, p, logs, out):
    """``softmax(z + d) - softmax(z)`` along the last axis, z being base scores; scores become ``d = factor scores``.

    ``p_j (u_j - T) / (1 + T)`` with ``u = expm1(d)`` and ``T = sum_j p_j u_j``, where no d of a row is larger than 1;
    else from the logarithms of p, which are -inf where nothing may be attended to. There d does not count, whatever it
    is.
    """
    rows, width = scores.shape
    one = scores.dtype.type(1)
    _growth(scores.reshape(-1), factor, p.reshape(-1), out.reshape(-1))
    for r in range(rows):
        total = 0 * one
        for s in range(width):
            total += out[r, s]
        scale = one / (one + total)
        for s in range(width):
            out[r, s] = (out[r, s] - p[r, s] * total) * scale
    if _has_large(scores.reshape(-1), logs.reshape(-1)):
        for r in range(rows):
            if _has_large(scores[r], logs[r]):
                _plain_change(scores[r], p[r], logs[r], out[r])


@compiled
def _growth(d, factor, p, out):
    """``d -> factor d``, and ``p expm1(d)``, 0 where p is."""
    factor = d.dtype.type(factor)
    for i in range(d.size):
        d[i] *= factor
        out[i] = p[i] * expm1(d[i]) if p[i] > 0 else 0 * p[i]


@compiled
def _has_large(d, logs):
    """True if a difference that counts is larger than 1; a NaN is not."""
    one, lowest = d.dtype.type(1), d.dtype.type(-np.inf)
    count = 0 * one
    for i in range(d.size):
        size = abs(d[i]) if logs[i] > lowest else 0 * one
        count += one if size > one else 0 * one
    return count > 0


@compiled
def _plain_change(d, p, logs, out):
    """``exp(log p + d - log sum exp(log p + d)) - p``, which does not cancel where some d is large."""
    lowest = d.dtype.type(-np.inf)
    highest, total = lowest, d.dtype.type(0)
    for s in range(d.size):
        out[s] = logs[s] + d[s] if logs[s] > lowest else lowest
        highest = out[s] if out[s] > highest or math.isnan(out[s]) else highest
    for s in range(d.size):
        out[s] = exp(out[s] - highest)
        total += out[s]
    for s in range(d.size):
        out[s] = out[s] / total - p[s]
