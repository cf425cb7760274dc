"""Compiled CPU loops behind :mod:`deepzero.graph.cpu.rank_one_kernels`.

Legend: P perturbations, G groups, M rows of a base value, N entries of a row, R rows given in full. Comparisons are
written so that a NaN stays a NaN.
"""

from __future__ import annotations

import math

from deepzero.graph.cpu.compilation import compiled


@compiled
def behind_kink(directions, base, out, rates, lanes, negative_slope):
    """Directions behind a kink at zero, and the extremes of ``-u / z`` along each row.

    ``directions [G, 1 or M, N]``, ``base [M, N]``, ``out [G, M, N]``, ``rates [2, G, M]``; ``lanes [3, L]`` is scratch:
    the largest, the smallest, and zeros that an infinity or a NaN turns into a NaN.
    """
    highest, lowest, zeros = lanes
    for g in range(out.shape[0]):
        for m in range(out.shape[1]):
            u, z, o = directions[g, m if directions.shape[1] > 1 else 0], base[m], out[g, m]
            highest[:] = -math.inf
            lowest[:] = math.inf
            zeros[:] = 0
            for start in range(0, z.size, lanes.shape[1]):
                a, b, c = u[start : start + lanes.shape[1]], z[start : start + lanes.shape[1]], o[start:]
                for i in range(a.size):
                    rate = -a[i] / b[i]
                    c[i] = a[i] if b[i] >= 0 else a[i] * negative_slope
                    highest[i] = rate if rate > highest[i] else highest[i]
                    lowest[i] = rate if rate < lowest[i] else lowest[i]
                    zeros[i] += rate * 0
            odd = zeros.sum() != 0
            rates[0, g, m] = math.inf if odd else highest.max()
            rates[1, g, m] = -math.inf if odd else lowest.min()


@compiled
def rows_that_cross(coefficients, groups, rates, straight, places):
    """The number of rows that cross a kink: ``places`` of them, and ``straight``, the coefficients of all others.

    ``coefficients`` and ``straight [P, M]``, ``rates [2, G, M]``, ``places [P M + 1]``.
    """
    found, width = 0, coefficients.shape[1]
    for p in range(coefficients.shape[0]):
        highest, lowest = rates[0, groups[p]], rates[1, groups[p]]
        for m in range(width):
            c = coefficients[p, m]
            stays = c == 0 or (c * highest[m] < 1 and c * lowest[m] < 1)
            straight[p, m] = c if stays else 0
            places[found] = p * width + m
            found += 0 if stays else 1
    return found


@compiled
def _rectified(d, z, slope, out):
    """``f(z + d) - f(z)`` of a leaky relu f, which is ``max(min(z, 0) + d, -max(z, 0))`` for a relu."""
    zero = slope * 0
    for i in range(out.size):
        floor = -z[i] if z[i] > 0 else zero
        v = d[i] if z[i] > 0 else z[i] + d[i]
        v = floor if v < floor else v
        out[i] = v if slope == 0 else slope * d[i] + (1 - slope) * v


@compiled
def rectified_rows(coefficients, directions, groups, places, base, given, rows, slope, out):
    """Rows of the change of a leaky relu: multiples at ``places [R]`` and behind them, those ``given`` by ``rows``.

    ``coefficients [P, M]``, ``directions [G, 1 or M, N]``, ``base [M, N]``, ``given [S]``, ``rows [S, N]``,
    ``out [R + S, N]``.
    """
    count, width = places.size, coefficients.shape[1]
    for r in range(count):
        p, m = places[r] // width, places[r] % width
        c, u, o = coefficients[p, m], directions[groups[p], m if directions.shape[1] > 1 else 0], out[r]
        for i in range(o.size):
            o[i] = c * u[i]
        _rectified(o, base[m], slope, o)
    for r in range(given.size):
        _rectified(rows[r], base[given[r] % width], slope, out[count + r])
