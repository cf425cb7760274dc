"""Compiled loops for ``f(z + d) - f(z)`` of pointwise functions f, in one pass over the differences.

Differences ``[P, N]`` meet base values ``[C, N]``: perturbation p those of row ``rows[p]``, which are one channel or,
where all entries differ, the only row. What f takes of base values alone stands in further arrays ``[C, N]``. A loop
goes over blocks that stay in the cache, and over all perturbations at each; in a block whose differences are all small
it has no branch and is vectorised, and where a large one is, every entry is told apart. The result is in ``out``, which
may be the differences' own memory; ``copied`` tells that it is not.
"""

from __future__ import annotations

import math

from numba import njit

from deepzero.graph.cpu.compilation import compiled
from deepzero.graph.cpu.vector_math import expm1, gauss_interval, logistic_change, near_gauss_interval, sigmoid

BLOCK = 1024
ROOT = math.sqrt(0.5)
OVERFLOW = 10.0
"""Above it the plain difference of exponentials cancels nothing, and expm1 may overflow where the result does not."""


@njit(inline="always")
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@njit(inline="always")
def _beyond(d, bound):
    """The number of entries of d that are larger than ``bound`` in size, or no numbers."""
    count = 0
    for i in range(d.size):
        count += 0 if abs(d[i]) <= bound else 1
    return count


@compiled
def relu(delta, z, rows, slope, rest, out, copied):
    """``slope d + rest max(min(z, 0) + d, -max(z, 0))`` with ``rest = 1 - slope``."""
    count, size = delta.shape
    zero = rest - rest
    for start in range(0, size, BLOCK):
        for p in range(count):
            o, base = out[p, start : start + BLOCK], z[rows[p], start : start + BLOCK]
            if copied:
                _copy(delta[p, start : start + BLOCK], o)
            for i in range(o.size):
                d, y = o[i], base[i]
                floor = -y if y > 0 else zero
                v = d + (zero if y > 0 else y)
                v = floor if v < floor else v
                o[i] = v if slope == 0 else slope * d + rest * v


@compiled
def gelu(delta, z, cdf, density, reach, first, second, third, rows, series, out, copied):
    """``d (Phi + I) + z I`` with ``Phi = cdf`` and ``phi = density`` at z, and ``I = Phi(z + d) - Phi(z)``.

    Where no ``|d| (|z| + 1.4)`` of a block is larger than ``series``, ``d (first + d (second + d third))``.
    """
    count, size = delta.shape
    shift = out.dtype.type(1.4)
    for start in range(0, size, BLOCK):
        for p in range(count):
            row = rows[p]
            o, base = out[p, start : start + BLOCK], z[row, start : start + BLOCK]
            if copied:
                _copy(delta[p, start : start + BLOCK], o)
            large = 0
            for i in range(o.size):
                large += 0 if abs(o[i]) * (abs(base[i]) + shift) <= series else 1
            if large == 0:
                a, b, c = first[row, start : start + BLOCK], second[row, start : start + BLOCK], third[row, start:]
                for i in range(o.size):
                    o[i] *= a[i] + o[i] * (b[i] + o[i] * c[i])
            else:
                below, slope = cdf[row, start : start + BLOCK], density[row, start : start + BLOCK]
                _near_gelu(o, base, below, slope, reach[row, start : start + BLOCK])


@compiled
def _near_gelu(o, z, cdf, density, reach):
    """:func:`gelu` of a block with differences that three terms of a series do not do for."""
    large, near = 0, o.dtype.type(0.25)
    for i in range(o.size):
        large += 0 if abs(o[i]) <= near * reach[i] else 1
    if large == 0:
        for i in range(o.size):
            change = near_gauss_interval(density[i], z[i], o[i])
            o[i] = o[i] * (cdf[i] + change) + z[i] * change
    else:
        _far_gelu(o, z, cdf, reach)


@compiled
def _far_gelu(o, z, cdf, reach):
    """:func:`gelu` of a block with differences that are not all small."""
    large = 0
    for i in range(o.size):
        large += 0 if abs(o[i]) <= reach[i] else 1
    if large == 0:
        for i in range(o.size):
            change = gauss_interval(z[i], o[i])
            o[i] = o[i] * (cdf[i] + change) + z[i] * change
    else:
        _any_gelu(o, z, cdf, reach)


@compiled
def _any_gelu(o, z, cdf, reach):
    """:func:`gelu` of a block with large differences, which take the plain difference in float64.

    Of Phi where it is small: of ``-Phi(-z)`` for positive z.
    """
    for i in range(o.size):
        d = o[i]
        if abs(d) <= reach[i]:
            change = gauss_interval(z[i], d)
            o[i] = d * (cdf[i] + change) + z[i] * change
        else:
            before, after = ROOT * float(z[i]), ROOT * (float(z[i]) + float(d))
            if z[i] > 0:
                interval = 0.5 * (math.erfc(before) - math.erfc(after))
            else:
                interval = 0.5 * (math.erfc(-after) - math.erfc(-before))
            o[i] = float(d) * (0.5 * math.erfc(-after)) + float(z[i]) * interval


@compiled
def logistic(delta, z, s, variance, rows, scale, out, copied):
    """``scale (s(scale z + scale d) - s(scale z))``: of the sigmoid for scale 1, of tanh for scale 2.

    ``s`` is the sigmoid at ``scale z``, ``variance`` is ``s (1 - s)``.
    """
    count, size = delta.shape
    for start in range(0, size, BLOCK):
        for p in range(count):
            row = rows[p]
            o, base = out[p, start : start + BLOCK], z[row, start : start + BLOCK]
            chance, spread = s[row, start : start + BLOCK], variance[row, start : start + BLOCK]
            if copied:
                _copy(delta[p, start : start + BLOCK], o)
            if _beyond(o, 0.5) == 0:
                for i in range(o.size):
                    o[i] = scale * logistic_change(chance[i], spread[i], scale * o[i])
            else:
                for i in range(o.size):
                    o[i] = scale * _any_logistic(scale * base[i], chance[i], scale * o[i])


@compiled
def _any_logistic(z, s, d):
    """``expm1(d) s(z) s(-(z + d))``; for large d the plain difference, on the side where the values are small."""
    if d > OVERFLOW:
        return sigmoid(z + d) - s if z <= 0 else sigmoid(-z) - sigmoid(-(z + d))
    return expm1(d) * s * sigmoid(-(z + d))


@compiled
def silu(delta, z, s, variance, rows, out, copied):
    """``d (s + ds) + z ds`` with the sigmoid s at z and its change ds."""
    count, size = delta.shape
    for start in range(0, size, BLOCK):
        for p in range(count):
            row = rows[p]
            o, base = out[p, start : start + BLOCK], z[row, start : start + BLOCK]
            chance, spread = s[row, start : start + BLOCK], variance[row, start : start + BLOCK]
            if copied:
                _copy(delta[p, start : start + BLOCK], o)
            if _beyond(o, 1) == 0:
                for i in range(o.size):
                    change = logistic_change(chance[i], spread[i], o[i])
                    o[i] = o[i] * (chance[i] + change) + base[i] * change
            else:
                for i in range(o.size):
                    d = o[i]
                    o[i] = d * sigmoid(base[i] + d) + base[i] * _any_logistic(base[i], chance[i], d)


@compiled
def gelu_tanh(delta, z, s, variance, rows, slope, cubic, out, copied):
    """``d (s + ds) + z ds`` with the sigmoid s at ``u = slope z + cubic z^3``, and its change by that of u.

    The latter is ``d (slope + cubic (3 z^2 + 3 z d + d^2))``.
    """
    count, size = delta.shape
    for start in range(0, size, BLOCK):
        for p in range(count):
            row = rows[p]
            o, base = out[p, start : start + BLOCK], z[row, start : start + BLOCK]
            chance, spread = s[row, start : start + BLOCK], variance[row, start : start + BLOCK]
            if copied:
                _copy(delta[p, start : start + BLOCK], o)
            large = 0
            for i in range(o.size):
                large += 0 if abs(_cubic_change(base[i], o[i], slope, cubic)) <= 1 else 1
            if large == 0:
                for i in range(o.size):
                    change = logistic_change(chance[i], spread[i], _cubic_change(base[i], o[i], slope, cubic))
                    o[i] = o[i] * (chance[i] + change) + base[i] * change
            else:
                for i in range(o.size):
                    d, y = o[i], base[i]
                    u, du = y * (slope + cubic * (y * y)), _cubic_change(y, d, slope, cubic)
                    o[i] = d * sigmoid(u + du) + y * _any_logistic(u, chance[i], du)


@njit(inline="always")
def _cubic_change(z, d, slope, cubic):
    """Change of ``slope z + cubic z^3``."""
    w = z * (z + d)
    return d * (slope + cubic * (w + w + w + d * d))
