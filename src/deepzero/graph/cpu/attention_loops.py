"""Compiled loops behind :mod:`deepzero.graph.cpu.attention_kernels`: the change of a softmax over the keys.

Legend: N blocks (one query matrix times one key matrix each), M blocks of base values, each of which N / M blocks in a
row share; L queries, S keys.
"""

from __future__ import annotations

import math

import numpy as np

from deepzero.graph.cpu.compilation import compiled
from deepzero.graph.cpu.vector_math import exp, expm1


@compiled
def softmax_changes(scores, factor, weights, logarithms, change):
    """``change[n] = softmax(z + d) - softmax(z)`` along the last axis, z being the base scores.

    ``scores[n]`` becomes ``d = factor scores[n]``.

    ``p_j (u_j - T) / (1 + T)`` with ``u = expm1(d)`` and ``T = sum_j p_j u_j``, where no d of a row is larger than 1;
    else from the logarithms ``log p``, which are -inf where nothing may be attended to. There d does not count,
    whatever it is.
    """
    count, rows, width = scores.shape
    share = count // max(1, weights.shape[0])
    one = scores.dtype.type(1)
    for n in range(count):
        p, logs, out = weights[n // share], logarithms[n // share], change[n]
        _growth(scores[n].reshape(-1), factor, p.reshape(-1), out.reshape(-1))
        for r in range(rows):
            own, o = p[r], out[r]
            total = 0 * one
            for s in range(width):
                total += o[s]
            scale = one / (one + total)
            for s in range(width):
                o[s] = (o[s] - own[s] * total) * scale
        if _has_large(scores[n].reshape(-1), logs.reshape(-1)):
            for r in range(rows):
                if _has_large(scores[n, r], logs[r]):
                    _plain_change(scores[n, r], p[r], logs[r], out[r])


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
