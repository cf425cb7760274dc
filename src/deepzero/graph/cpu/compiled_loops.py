"""Compiled CPU loops behind :mod:`deepzero.graph.cpu.cpu_kernels`.

Single-threaded and free of the GIL: chunks run in parallel, loops do not, so the numbers never depend on the number of
threads. Legend: P perturbations, R rows (samples x positions), W columns (channels, possibly several rows side by
side), B samples, O output channels. Comparisons are written so that a NaN stays a NaN.
"""

from __future__ import annotations

import math

from numba import njit

from deepzero.graph.cpu.compilation import compiled

BLOCK = 32


@compiled
def _larger(a, b):
    """The larger of two; NaN if one of them is."""
    return b if b > a or math.isnan(b) else a


@compiled
def column_sums(delta, centred, partial, out):
    """``out[p] = sums over rows of (d, c d, d^2)``; ``partial [P, 3, W]`` is scratch in the data's dtype."""
    count, rows, width = delta.shape
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        for p in range(count):
            first, cross, square = partial[p, 0], partial[p, 1], partial[p, 2]
            first[:] = 0
            cross[:] = 0
            square[:] = 0
            for r in range(start, stop):
                d, c = delta[p, r], centred[r]
                for w in range(width):
                    first[w] += d[w]
                    cross[w] += d[w] * c[w]
                    square[w] += d[w] * d[w]
            for w in range(width):
                out[p, 0, w] += first[w]
                out[p, 1, w] += cross[w]
                out[p, 2, w] += square[w]


@compiled
def channel_sums(delta, centred, channels, out):
    """:func:`column_sums` for channel differences ``[P, R]`` over channel-first base values ``[C, R]``."""
    count, rows = delta.shape
    for p in range(count):
        for start in range(0, rows, 1024):
            d, c = delta[p, start : start + 1024], centred[channels[p], start : start + 1024]
            first, cross, square = d[0] * 0, d[0] * 0, d[0] * 0
            for r in range(d.size):
                first += d[r]
                cross += d[r] * c[r]
                square += d[r] * d[r]
            out[p, 0] += first
            out[p, 1] += cross
            out[p, 2] += square


@compiled
def affine_relu(data, centred, before, slope, tilt, shift):
    """In place, ``d -> relu(y + v) - relu(y)`` with ``v = slope d + tilt c + shift``, y being the relu's base input.

    The difference of relus is ``max(v + min(y, 0), -max(y, 0))``.
    """
    count, rows, width = data.shape
    for start in range(0, rows, BLOCK):
        for p in range(count):
            a, b, e = slope[p], tilt[p], shift[p]
            for r in range(start, min(start + BLOCK, rows)):
                d, c, y = data[p, r], centred[r], before[r]
                for w in range(width):
                    v = a[w] * d[w] + b[w] * c[w] + e[w]
                    floor = -y[w] if y[w] > 0 else 0 * v
                    v += 0 * v if y[w] > 0 else y[w]
                    d[w] = floor if v < floor else v


@compiled
def affine_add_relu(data, extra, centred, before, slope, tilt, shift):
    """:func:`affine_relu` with a residual difference added to v."""
    count, rows, width = data.shape
    for start in range(0, rows, BLOCK):
        for p in range(count):
            a, b, e = slope[p], tilt[p], shift[p]
            for r in range(start, min(start + BLOCK, rows)):
                d, x, c, y = data[p, r], extra[p, r], centred[r], before[r]
                for w in range(width):
                    v = a[w] * d[w] + b[w] * c[w] + e[w] + x[w]
                    floor = -y[w] if y[w] > 0 else 0 * v
                    v += 0 * v if y[w] > 0 else y[w]
                    d[w] = floor if v < floor else v


@compiled
def channel_affine_relu(delta, centred, before, channels, slope, tilt, shift, out):
    """:func:`affine_relu` for channel differences ``[P, R]``, to another array."""
    count, rows = delta.shape
    for p in range(count):
        a, b, e = slope[p], tilt[p], shift[p]
        d, c, y, o = delta[p], centred[channels[p]], before[channels[p]], out[p]
        for r in range(rows):
            v = a * d[r] + b * c[r] + e
            floor = -y[r] if y[r] > 0 else 0 * v
            v += 0 * v if y[r] > 0 else y[r]
            o[r] = floor if v < floor else v


@compiled
def disjoint_maxima(delta, gap, kernel, line, out):
    """``max (gap + d)`` over windows that tile height and width.

    ``delta [P, B, H, W, C]``, ``gap [B, H, W, C]``, ``out [P, B, h, w, C]``, ``line [W * C]`` scratch.
    """
    count, batch, height, width, channels = delta.shape
    long = width * channels
    flat, base = delta.reshape(count, batch, height, long), gap.reshape(batch, height, long)
    for b in range(batch):
        for p in range(count):
            for y in range(out.shape[2]):
                top = y * kernel[0]
                _over_rows(flat[p, b, top : top + kernel[0]], base[b, top : top + kernel[0]], line)
                for x in range(out.shape[3]):
                    best, window = out[p, b, y, x], line[x * kernel[1] * channels :]
                    for c in range(channels):
                        best[c] = window[c]
                    for j in range(1, kernel[1]):
                        entry = window[j * channels :]
                        for c in range(channels):
                            best[c] = _larger(best[c], entry[c])


@compiled
def disjoint_channel_maxima(delta, gap, channels, kernel, line, out):
    """:func:`disjoint_maxima` of one channel each.

    ``delta [P, B, H, W]``, ``gap [C, B, H, W]``, ``out [P, B, h, w]``, ``line [W]`` scratch.
    """
    count, batch = delta.shape[:2]
    for p in range(count):
        base = gap[channels[p]]
        for b in range(batch):
            for y in range(out.shape[2]):
                top = y * kernel[0]
                _over_rows(delta[p, b, top : top + kernel[0]], base[b, top : top + kernel[0]], line)
                _along_row(line, kernel[1], out[p, b, y])


@njit(inline="always")
def _over_rows(delta, gap, out):
    """``max (gap + d)`` over the first axis. Inlined: as a call it slows the channel loop by a fifth."""
    first, base = delta[0], gap[0]
    for w in range(out.size):
        out[w] = base[w] + first[w]
    for i in range(1, delta.shape[0]):
        d, g = delta[i], gap[i]
        for w in range(out.size):
            out[w] = _larger(out[w], g[w] + d[w])


@compiled
def _along_row(line, size, out):
    """Maxima of windows along a line. Those of two entries, the most frequent, have a loop that vectorizes."""
    if size == 2:
        for x in range(out.size):
            out[x] = _larger(line[2 * x], line[2 * x + 1])
    else:
        for x in range(out.size):
            best = line[x * size]
            for j in range(1, size):
                best = _larger(best, line[x * size + j])
            out[x] = best


@compiled
def shifted_slices(padded, features, rows, columns, values, stride, dilation, out):
    """``out[p] = values[p] * padded[features[p], :, window]``: ``padded [I, B, H, W]``, ``out [P, B, h, w]``."""
    for p in range(out.shape[0]):
        source = padded[features[p]]
        top, left = rows[p] * dilation[0], columns[p] * dilation[1]
        value = values[p]
        for b in range(out.shape[1]):
            for y in range(out.shape[2]):
                line, target = source[b, top + y * stride[0], left:], out[p, b, y]
                if stride[1] == 1:
                    for x in range(target.size):
                        target[x] = value * line[x]
                else:
                    for x in range(target.size):
                        target[x] = value * line[x * stride[1]]
