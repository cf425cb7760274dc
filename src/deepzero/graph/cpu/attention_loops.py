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
def softmax_changes(scores, weights, logarithms, change):
    """``change[n] = softmax(z + d) - softmax(z)`` along the last axis, ``d = scores[n]`` and z the base scores.

    ``p_j (u_j - T) / (1 + T)`` with ``u = expm1(d)`` and ``T = sum_j p_j u_j``, where no d of a row is larger than 1;
    else from the logarithms ``log p``, which are -inf where nothing may be attended to. There d does not count,
    whatever it is.
    """
    count, rows, width = scores.shape
    share = count // max(1, weights.shape[0])
    for n in range(count):
        d, p, logs, out = scores[n].reshape(-1), weights[n // share].reshape(-1), logarithms[n // share], change[n]
        flat = out.reshape(-1)
        for i in range(flat.size):
            flat[i] = p[i] * expm1(d[i]) if p[i] > 0 else 0 * p[i]
        for r in range(rows):
            total = out[r, 0] * 0
            for s in range(width):
                total += out[r, s]
            if _is_small(scores[n, r], logs[r]):
                own, scale = weights[n // share, r], 1 / (1 + total)
                for s in range(width):
                    out[r, s] = (out[r, s] - own[s] * total) * scale
            else:
                _plain_change(scores[n, r], weights[n // share, r], logs[r], out[r])


@compiled
def _is_small(d, logs):
    """True if no difference that counts is larger than 1; a NaN is small."""
    most = d[0] * 0
    for s in range(d.size):
        size = abs(d[s]) if logs[s] > -np.inf else 0 * most
        most = size if size > most else most
    return most <= 1


@compiled
def _plain_change(d, p, logs, out):
    """``exp(log p + d - log sum exp(log p + d)) - p``, which does not cancel where some d is large."""
    highest = -np.inf
    for s in range(d.size):
        out[s] = logs[s] + d[s] if logs[s] > -np.inf else logs[s]
        highest = out[s] if out[s] > highest or math.isnan(out[s]) else highest
    total = out[0] * 0
    for s in range(d.size):
        out[s] = exp(out[s] - highest)
        total += out[s]
    for s in range(d.size):
        out[s] = out[s] / total - p[s]
