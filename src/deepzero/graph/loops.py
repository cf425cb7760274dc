"""Compiled CPU loops behind :mod:`deepzero.graph.kernels`.

Single-threaded and free of the GIL: chunks run in parallel, loops do not, so the numbers never depend on the number of
threads. Legend: P perturbations, R rows (samples x positions), W columns (channels, possibly several rows side by
side), B samples, O output channels. Comparisons are written so that a NaN stays a NaN.
"""

from __future__ import annotations

from numba import njit

_compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
BLOCK = 32


@_compiled
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


@_compiled
def channel_sums(delta, centred, channels, out):
    """:func:`column_sums` for channel differences ``[P, R]`` over channel-first base values ``[C, R]``."""
    count, rows = delta.shape
    for p in range(count):
        d, c = delta[p], centred[channels[p]]
        for start in range(0, rows, 1024):
            first, cross, square = d[0] * 0, d[0] * 0, d[0] * 0
            for r in range(start, min(start + 1024, rows)):
                first += d[r]
                cross += d[r] * c[r]
                square += d[r] * d[r]
            out[p, 0] += first
            out[p, 1] += cross
            out[p, 2] += square


@_compiled
def affine_relu(delta, centred, before, slope, tilt, shift, out):
    """``relu(y + v) - relu(y)`` with ``v = slope d + tilt c + shift`` and y the base value before the relu."""
    count, rows, width = delta.shape
    for start in range(0, rows, BLOCK):
        for p in range(count):
            a, b, e = slope[p], tilt[p], shift[p]
            for r in range(start, min(start + BLOCK, rows)):
                d, c, y, o = delta[p, r], centred[r], before[r], out[p, r]
                for w in range(width):
                    v = a[w] * d[w] + b[w] * c[w] + e[w]
                    low = -y[w]
                    up = -low + v
                    o[w] = (low if v < low else v) if y[w] > 0 else (0 if up < 0 else up)


@_compiled
def affine_add_relu(delta, extra, centred, before, slope, tilt, shift, out):
    """:func:`affine_relu` with a residual difference added to v."""
    count, rows, width = delta.shape
    for start in range(0, rows, BLOCK):
        for p in range(count):
            a, b, e = slope[p], tilt[p], shift[p]
            for r in range(start, min(start + BLOCK, rows)):
                d, x, c, y, o = delta[p, r], extra[p, r], centred[r], before[r], out[p, r]
                for w in range(width):
                    v = a[w] * d[w] + b[w] * c[w] + e[w] + x[w]
                    low = -y[w]
                    up = -low + v
                    o[w] = (low if v < low else v) if y[w] > 0 else (0 if up < 0 else up)


@_compiled
def channel_affine_relu(delta, centred, before, channels, slope, tilt, shift, out):
    """:func:`affine_relu` for channel differences ``[P, R]``."""
    count, rows = delta.shape
    for p in range(count):
        a, b, e = slope[p], tilt[p], shift[p]
        d, c, y, o = delta[p], centred[channels[p]], before[channels[p]], out[p]
        for r in range(rows):
            v = a * d[r] + b * c[r] + e
            low = -y[r]
            up = -low + v
            o[r] = (low if v < low else v) if y[r] > 0 else (0 if up < 0 else up)


@_compiled
def convolve_channel(delta, weight, channels, stride, pad, dilation, out):
    """One input channel ``[P, B, H, W]`` through ``weight [I, k, k, O]`` to ``out [P, B, h, w, O]``."""
    count, batch, height, width = delta.shape
    _, rows, columns, outputs = weight.shape
    for p in range(count):
        filters = weight[channels[p]]
        for b in range(batch):
            for y in range(out.shape[2]):
                for x in range(out.shape[3]):
                    target = out[p, b, y, x]
                    target[:] = 0
                    for i in range(rows):
                        v = y * stride[0] - pad[0] + i * dilation[0]
                        if v < 0 or v >= height:
                            continue
                        for j in range(columns):
                            u = x * stride[1] - pad[1] + j * dilation[1]
                            if u < 0 or u >= width:
                                continue
                            d = delta[p, b, v, u]
                            if d != 0:
                                taps = filters[i, j]
                                for o in range(outputs):
                                    target[o] += d * taps[o]


@_compiled
def max_pool_rows(delta, base, maximum, kernel, stride, pad, dilation, out):
    """Change of window maxima, channels last: ``delta [P, B, H, W, C]``, ``out [P, B, h, w, C]``."""
    count, batch, height, width, channels = delta.shape
    for b in range(batch):
        for p in range(count):
            for y in range(out.shape[2]):
                for x in range(out.shape[3]):
                    best, top = out[p, b, y, x], maximum[b, y, x]
                    first = True
                    for i in range(kernel[0]):
                        v = y * stride[0] - pad[0] + i * dilation[0]
                        if v < 0 or v >= height:
                            continue
                        for j in range(kernel[1]):
                            u = x * stride[1] - pad[1] + j * dilation[1]
                            if u < 0 or u >= width:
                                continue
                            d, z = delta[p, b, v, u], base[b, v, u]
                            if first:
                                for c in range(channels):
                                    best[c] = (z[c] - top[c]) + d[c]
                            else:
                                for c in range(channels):
                                    value = (z[c] - top[c]) + d[c]
                                    best[c] = best[c] if value < best[c] else value
                            first = False


@_compiled
def max_pool_channel(delta, base, maximum, channels, kernel, stride, pad, dilation, out):
    """Change of window maxima of one channel: ``delta [P, B, H, W]``, ``base [C, B, H, W]``, ``out [P, B, h, w]``."""
    count, batch, height, width = delta.shape
    for p in range(count):
        for b in range(batch):
            d, z, top = delta[p, b], base[channels[p], b], maximum[channels[p], b]
            for y in range(out.shape[2]):
                for x in range(out.shape[3]):
                    best, first = d[0, 0], True
                    for i in range(kernel[0]):
                        v = y * stride[0] - pad[0] + i * dilation[0]
                        if v < 0 or v >= height:
                            continue
                        for j in range(kernel[1]):
                            u = x * stride[1] - pad[1] + j * dilation[1]
                            if u < 0 or u >= width:
                                continue
                            value = (z[v, u] - top[y, x]) + d[v, u]
                            best = value if first or not (value < best) else best
                            first = False
                    out[p, b, y, x] = best


@_compiled
def shifted_slices(padded, features, rows, columns, values, stride, dilation, out):
    """``out[p] = values[p] * padded[features[p], :, shifted window]`` with ``padded [I, B, H, W]``, ``out [P, B, h, w]``."""
    for p in range(out.shape[0]):
        source = padded[features[p]]
        top, left = rows[p] * dilation[0], columns[p] * dilation[1]
        value = values[p]
        for b in range(out.shape[1]):
            for y in range(out.shape[2]):
                line = source[b, top + y * stride[0]]
                target = out[p, b, y]
                for x in range(out.shape[3]):
                    target[x] = value * line[left + x * stride[1]]
