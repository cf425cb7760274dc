"""Compiled loops for functions of whole rows: normalization, softmax, and cross entropy with class labels.

Differences ``[P, R, W]`` are rows of W entries. They meet base values ``[C, R, W]``: perturbation p those of
``slots[p]``, which is one channel or, where all of it differs, the only one. A row is passed over a few times while it
is in the cache, and read from memory once; base values stay there for all perturbations. Loops that end in ``out`` may
be given the differences' own memory; ``copied`` tells that it is not.
"""

from __future__ import annotations

import math

from numba import njit

from deepzero.graph.cpu.compilation import compiled
from deepzero.graph.cpu.vector_math import expm1, log1p

BLOCK = 32
OVERFLOW = 10.0
"""Above it the plain difference of exponentials cancels nothing, and expm1 may overflow where the result does not."""
REMAINS = 1 / 16
"""What must remain of a square, :data:`deepzero.graph.tails.REMAINS`."""
LEFT, GROWN = -0.5, 1e6
"""Where a sum of exponentials grows by less or by more, times its base value, its logarithm is taken as a whole."""


@njit(inline="always")
def _copy(source, target):
    for w in range(target.size):
        target[w] = source[w]


@njit(inline="always")
def _factors(scale, changed, dv, kind):
    """``1/s'`` and ``1/s' - 1/s`` for ``s'^2 = s^2 + dv``, which is ``changed``."""
    new = math.sqrt(changed)
    return kind(kind(1) / new), kind(-dv / (scale * new * (scale + new)))


@njit(inline="always")
def _squares(c, d, mean):
    """The sum of ``(c + f)^2`` with ``f = d - mean``."""
    total = d[0] * 0
    for w in range(d.size):
        new = c[w] + (d[w] - mean)
        total += new * new
    return total


@compiled
def normalize(delta, centred, scale, weight, slots, of_mean, of_square, eps, out, copied):
    """Change of ``weight c / s``: ``weight (f / s' + c (1/s' - 1/s))`` with f the difference without its mean.

    ``s'^2 - s^2`` is ``of_square`` times the sum of ``f (2 c + f)``. The mean is ``of_mean`` times the sum of a row,
    which is 0 where none is taken off. Where little is left of s^2, s' is that of ``c + f``.
    """
    count, rows = delta.shape[:2]
    kind = out.dtype.type
    left = kind(REMAINS)
    for start in range(0, rows, BLOCK):
        for p in range(count):
            for r in range(start, min(start + BLOCK, rows)):
                o, c = out[p, r], centred[slots[p], r]
                if copied:
                    _copy(delta[p, r], o)
                mean, dv = kind(0), kind(0)
                for w in range(o.size):
                    mean += o[w]
                mean *= of_mean
                for w in range(o.size):
                    f = o[w] - mean
                    dv += f * (c[w] + c[w] + f)
                s, dv = scale[slots[p], r], dv * of_square
                changed = s * s + dv
                if changed < left * s * s:
                    changed = _squares(c, o, mean) * of_square + eps
                a, b = _factors(s, changed, dv, kind)
                for w in range(o.size):
                    o[w] = weight[w] * (a * (o[w] - mean) + b * c[w])


@compiled
def normalize_entry(delta, centred, scale, weight, entries, of_mean, of_square, eps, out):
    """:func:`normalize` where one entry of each row differs, ``entries[p]``, by ``delta [P, R]``."""
    count, rows = delta.shape
    kind = out.dtype.type
    left = kind(REMAINS)
    for start in range(0, rows, BLOCK):
        for p in range(count):
            entry = entries[p]
            for r in range(start, min(start + BLOCK, rows)):
                o, c, d = out[p, r], centred[0, r], delta[p, r]
                mean = d * of_mean
                s, dv = scale[0, r], d * (c[entry] + c[entry] + (d - mean)) * of_square
                changed = s * s + dv
                if changed < left * s * s:
                    for w in range(o.size):
                        o[w] = kind(0)
                    o[entry] = d
                    changed = _squares(c, o, mean) * of_square + eps
                a, b = _factors(s, changed, dv, kind)
                shift = a * mean
                for w in range(o.size):
                    o[w] = weight[w] * (b * c[w] - shift)
                o[entry] = weight[entry] * (b * c[entry] + a * (d - mean))


@njit(inline="always")
def _growth(e, p, kind):
    """``sum p expm1(e)``; NaN where an e is so large that another form must be taken, or the sum is."""
    growth, large = kind(0), kind(0)
    bound = kind(OVERFLOW)
    for w in range(e.size):
        growth += p[w] * expm1(e[w])
        large += kind(0) if e[w] <= bound else kind(1)
    return growth if large == 0 and LEFT <= growth <= GROWN else kind(math.nan)


@compiled
def _log_growth(e, p, logs):
    """``log(1 + sum p expm1(e))`` for all e; the logarithms of p are exact also where p is 0 by underflow."""
    growth, most = 0.0, -math.inf
    for w in range(e.size):
        growth += (math.exp(logs[w] + e[w]) - p[w]) if e[w] > OVERFLOW else p[w] * math.expm1(e[w])
        most = logs[w] + e[w] if logs[w] + e[w] > most else most
    if math.isnan(growth) or LEFT <= growth <= GROWN or math.isinf(most):
        return math.log1p(growth)
    total = 0.0
    for w in range(e.size):
        total += math.exp(logs[w] + e[w] - most)
    return most + math.log(total)


@compiled
def softmax(delta, p, logs, likeliest, slots, log, out, copied):
    """``p expm1(v)``, or with ``log`` ``v = e - log(1 + sum p expm1(e))``; e is d minus that of the likeliest entry."""
    count, rows = delta.shape[:2]
    kind = out.dtype.type
    for start in range(0, rows, BLOCK):
        for q in range(count):
            for r in range(start, min(start + BLOCK, rows)):
                slot = slots[q]
                o, chance = out[q, r], p[slot, r]
                if copied:
                    _copy(delta[q, r], o)
                own = o[likeliest[slot, r]]
                for w in range(o.size):
                    o[w] -= own
                growth = _growth(o, chance, kind)
                if math.isnan(growth):
                    _any_softmax(o, chance, logs[slot, r], log)
                else:
                    change = log1p(growth)
                    for w in range(o.size):
                        v = o[w] - change
                        o[w] = v if log else chance[w] * expm1(v)


@compiled
def _any_softmax(o, p, logs, log):
    """:func:`softmax` of one row with large differences."""
    change = _log_growth(o, p, logs)
    for w in range(o.size):
        v = o[w] - change
        if not log:
            v = (math.exp(logs[w] + v) - p[w]) if v > OVERFLOW else p[w] * math.expm1(v)
        o[w] = v


@compiled
def label_losses(delta, p, logs, labels, slots, line, out):
    """``log(1 + sum p expm1(d - d_y))`` to ``out [P, R]`` for labels y ``[C, R]``; ``line [W]`` is scratch."""
    count, rows = delta.shape[:2]
    kind = out.dtype.type
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        for q in range(count):
            slot = slots[q]
            o = out[q, start:stop]
            for r in range(start, stop):
                d, own = delta[q, r], delta[q, r, labels[slot, r]]
                for w in range(line.size):
                    line[w] = d[w] - own
                o[r - start] = _growth(line, p[slot, r], kind)
            odd = _take_logarithms(o)
            for r in range(start, stop if odd else start):
                if math.isnan(o[r - start]):
                    own = delta[q, r, labels[slot, r]]
                    for w in range(line.size):
                        line[w] = delta[q, r, w] - own
                    o[r - start] = _log_growth(line, p[slot, r], logs[slot, r])


@njit(inline="always")
def _grow(growth, largest, d, own, chance):
    """Add ``p expm1(e)`` to the growths of many rows, ``e = d - own``, and note the largest e of each."""
    for r in range(growth.size):
        e = d[r] - own[r]
        growth[r] += chance[r] * expm1(e)
        largest[r] = e if e > largest[r] else largest[r]


@compiled
def label_losses_across(delta, columns, p, logs, labels, own, largest, line, out):
    """:func:`label_losses` of differences ``[P, W, R]``, rows side by side in memory: all of them grow together.

    With base values ``[R, W]``, their columns ``[W, R]``, and scratch ``own [R]``, ``largest [R]`` and ``line [W]``.
    """
    count, width, rows = delta.shape
    kind = out.dtype.type
    low, high, bound, zero, none = kind(LEFT), kind(GROWN), kind(OVERFLOW), kind(0), kind(math.nan)
    for q in range(count):
        o = out[q]
        for r in range(rows):
            own[r] = delta[q, labels[r], r]
            o[r] = zero
            largest[r] = zero
        for w in range(width):
            _grow(o, largest, delta[q, w], own, columns[w])
        for r in range(rows):
            o[r] = o[r] if (o[r] >= low) & (o[r] <= high) & (largest[r] <= bound) else none
        odd = _take_logarithms(o)
        for r in range(rows if odd else 0):
            if math.isnan(o[r]):
                for w in range(width):
                    line[w] = delta[q, w, r] - own[r]
                o[r] = _log_growth(line, p[r], logs[r])


@njit(inline="always")
def _take_logarithms(growth):
    """``log(1 + growth)`` in place; whether any is not a number."""
    odd = 0
    for r in range(growth.size):
        growth[r] = log1p(growth[r])
        odd += 1 if math.isnan(growth[r]) else 0
    return odd > 0


@compiled
def label_losses_of_column(delta, columns, p, logs, others, labels, entries, line, out):
    """:func:`label_losses` where one entry of each row differs, ``entries[q]``, by ``delta [P, R]``: only it is read.

    With base values ``[R, W]``, their columns ``[W, R]``, and the sum of all p but the label's, ``others [R]``: if the
    label's logit differs, all others do so by -d.
    """
    count, rows = delta.shape
    kind = out.dtype.type
    low, high, bound, zero, none = kind(LEFT), kind(GROWN), kind(OVERFLOW), kind(0), kind(math.nan)
    for q in range(count):
        entry, d, o = entries[q], delta[q], out[q]
        chance = columns[entry]
        for r in range(rows):
            own = labels[r] == entry
            e = zero - d[r] if own else d[r]
            growth = (others[r] if own else chance[r]) * expm1(e)
            o[r] = growth if (e <= bound) & (growth >= low) & (growth <= high) else none
        odd = _take_logarithms(o)
        for r in range(rows if odd else 0):
            if math.isnan(o[r]):
                own = d[r] if labels[r] == entry else zero
                for w in range(line.size):
                    line[w] = (d[r] if w == entry else zero) - own
                o[r] = _log_growth(line, p[r], logs[r])
