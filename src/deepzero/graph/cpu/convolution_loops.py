"""Compiled loops for convolutions and what follows them, with samples in the lanes of a vector.

Images lie in *blocks* of samples, ``[N, C, H, W, L]``: a vector is one place of one channel in as many samples as a
register holds (:mod:`~deepzero.graph.cpu.vectors`), so any number of channels and any width fills it. A band of rows of
a block, with its padding, and its convolution are copied to scratch in the core's cache, and all perturbations pass
through before the next band: base values come from memory once a chunk.

Floor: a tile makes 24 fused products (12 without AVX-512) for 10 (7) reads, so a convolution is bound by its
arithmetic, two vectors of products a cycle; what goes behind it reads and writes each difference once.

Legend: P perturbations, C input and O output channels, H, W height and width, h, w those of the output, B samples, L
lanes, N blocks, K terms of a sum; n places that are convolved together (bands of one block, or some small blocks),
padded to whole tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from deepzero.graph.cpu.compilation import borrowing, part
from deepzero.graph.cpu.vectors import (
    OUTPUTS,
    PLACES,
    fused,
    kept,
    lanes,
    larger,
    load,
    lowest,
    maximum,
    minus,
    plus,
    smaller,
    spread,
    store,
    tile,
    times,
    total,
    zeros,
)

PARTIAL = 256
"""Vectors that are added up in the data's dtype before their sum goes to float64."""
FIRST, NOWHERE = np.int64(0), np.int64(-1)
"""Constants that numba takes as any number: it would compile a part anew for each plain one."""


class Bands(NamedTuple):
    """A convolution laid out band by band.

    Attributes:
        size: ``(C, H, W)``.
        image: numbers from one perturbation's images to the next one's.
        origins: where the images of each block begin in them ``[N]``.
        apart: numbers from one place to the next.
        skips: lanes of each block that the one before has already ``[N]``.
        together: blocks that are convolved at a time.
        rows: of the output in a band.
        stride: rows of the input from one row of the output to the next.
        pads: zeros at the top, at the left and at the right.
        padded: rows of a padded band.
        spatial: ``(h, w)``.
        outputs: O.
        width: O, padded to whole tiles.
        starts: where the vector of each place begins in the scratch of padded bands ``[n]``.
        taps: how far from there the terms of its sum lie ``[K]``.
    """

    size: tuple[int, int, int]
    image: int
    origins: Any
    apart: int
    skips: Any
    together: int
    rows: int
    stride: int
    pads: tuple[int, int, int]
    padded: int
    spatial: tuple[int, int]
    outputs: int
    width: int
    starts: Any
    taps: Any


class BandTail(NamedTuple):
    """The tail of a convolution, in blocks ``[N, O, h w, L]``: ``relu(y + slope d + tilt c + shift) - relu(y)``.

    Attributes:
        centred: c.
        before: y.
        maxima: M of the windows, ``[N, O, places behind, L]``; empty without pooling.
        behind: height and width behind the pooling, or of the convolution.
        window: kernel, stride, padding and dilation, of height and width each; a stride of 1 without pooling.
        slope: ``[P, O]``, or ``[P, 1]`` where a perturbation has a single channel; empty without a tail.
        tilt: likewise.
        shift: likewise.
    """

    centred: Any
    before: Any
    maxima: Any
    behind: tuple[int, int]
    window: tuple[int, int, int, int, int, int, int, int]
    slope: Any
    tilt: Any
    shift: Any


@part
def padded_band(x, start, bands, first, scratch, place):
    """A band of one image, in its padding: ``scratch [C, padded, W + pads, L]``.

    ``x`` is flat, the image begins at ``start``; ``first`` is the image's row that the band begins with.
    """
    channels, height, width = bands.size
    step, apart = lanes(x), bands.apart
    wide = width + bands.pads[1] + bands.pads[2]
    for c in range(channels):
        for row in range(bands.padded):
            y, target = first + row, place + (c * bands.padded + row) * wide * step
            inside = 0 <= y < height
            if inside:
                source = start + (c * height + y) * width * apart - bands.pads[1] * apart
                for u in range(bands.pads[1], bands.pads[1] + width):
                    store(scratch, target + u * step, load(x, source + u * apart))
            for u in range(bands.pads[1] if inside else wide):
                store(scratch, target + u * step, zeros(x))
            for u in range(bands.pads[1] + width if inside else wide, wide):
                store(scratch, target + u * step, zeros(x))


@part
def convolved_band(x, p, block, band, bands, scratch, weights, corner, buffer):
    """One perturbation's convolution of a band, or of several small blocks, to ``buffer [width, n, L]``."""
    padded, count, step = scratch.size // bands.together, bands.starts.size, lanes(x)
    for g in range(bands.together):
        start = p * bands.image + bands.origins[block + g]
        padded_band(x, start, bands, band * bands.rows * bands.stride - bands.pads[0], scratch, g * padded)
    for first in range(0, count, PLACES):
        for output in range(0, bands.width, OUTPUTS):
            place = (output * count + first) * step
            tile(
                scratch,
                bands.starts,
                first,
                bands.taps,
                weights,
                corner + output,
                bands.width,
                buffer,
                place,
                count * step,
            )


@part
def slice_of_band(padded, start, value, starts, buffer):
    """``value`` times a slice of a padded block, to ``buffer [n, L]``: the change by one weight."""
    factor = spread(value)
    for i in range(starts.size):
        store(buffer, i * lanes(padded), times(factor, load(padded, start + starts[i])))


@part
def add_sums(buffer, start, centred, base, count, skip, out, place):
    """Add ``(d, c d, d^2)``, summed over ``count`` vectors without their first ``skip`` lanes, to three of ``out``."""
    step = lanes(buffer)
    for begin in range(0, count, PARTIAL):
        stop = min(begin + PARTIAL, count)
        even = (stop - begin) // 2 * 2 + begin
        first, cross, square = zeros(buffer), zeros(buffer), zeros(buffer)
        first2, cross2, square2 = zeros(buffer), zeros(buffer), zeros(buffer)
        for i in range(begin, even, 2):
            d, e = load(buffer, start + i * step), load(buffer, start + (i + 1) * step)
            first, first2 = plus(first, d), plus(first2, e)
            cross = fused(d, load(centred, base + i * step), cross)
            cross2 = fused(e, load(centred, base + (i + 1) * step), cross2)
            square, square2 = fused(d, d, square), fused(e, e, square2)
        if even < stop:
            d = load(buffer, start + even * step)
            first, square = plus(first, d), fused(d, d, square)
            cross = fused(d, load(centred, base + even * step), cross)
        out[place] += total(kept(plus(first, first2), skip))
        out[place + 1] += total(kept(plus(cross, cross2), skip))
        out[place + 2] += total(kept(plus(square, square2), skip))


@part
def relu_row(buffer, start, centred, before, base, count, slope, tilt, shift, extra, more, out, place, apart):
    """``relu(y + v) - relu(y)`` with ``v = slope d + tilt c + shift (+ x)``: ``max(v + min(y, 0), -max(y, 0))``.

    From vectors side by side to vectors ``apart``; a residual difference x, if any, begins at ``more``, else -1.
    """
    side, none = lanes(buffer), zeros(buffer)
    a, b, e = spread(slope), spread(tilt), spread(shift)
    for i in range(count):
        d, y = load(buffer, start + i * side), load(before, base + i * side)
        v = fused(a, d, fused(b, load(centred, base + i * side), e))
        if more >= 0:
            v = plus(v, load(extra, more + i * side))
        store(out, place + i * apart, larger(smaller(minus(none, y), none), plus(v, smaller(none, y))))


@part
def pooled_row(buffer, start, centred, before, base, maxima, top, sizes, window, slope, tilt, shift, out, place, apart):
    """``max (relu(y) - M + r)`` over windows, r being the change that :func:`relu_row` gives.

    ``sizes`` are height and width of what is read and of what is written.
    """
    side, none = lanes(buffer), zeros(buffer)
    a, b, e = spread(slope), spread(tilt), spread(shift)
    height, width, tall, wide = sizes
    for to_y in range(tall):
        for to_x in range(wide):
            here = to_y * wide + to_x
            peak, best = load(maxima, top + here * side), lowest(buffer)
            for row in range(window[0]):
                y0 = to_y * window[2] - window[4] + row * window[6]
                if y0 < 0 or y0 >= height:
                    continue
                for column in range(window[1]):
                    x0 = to_x * window[3] - window[5] + column * window[7]
                    if x0 < 0 or x0 >= width:
                        continue
                    i = (y0 * width + x0) * side
                    d, y = load(buffer, start + i), load(before, base + i)
                    v = fused(a, d, fused(b, load(centred, base + i), e))
                    floor = smaller(minus(none, y), none)
                    change = larger(floor, plus(v, smaller(none, y)))
                    best = maximum(best, plus(minus(minus(none, floor), peak), change))
            store(out, place + here * apart, best)


@part
def tail_row(buffer, start, tail, row, band, bands, p, o, extra, more, out, place, apart):
    """The relu, or the maxima of it, of a band of row ``row`` (block and channel) of the base values."""
    side, window = lanes(buffer), tail.window
    (height, width), (tall, wide) = bands.spatial, tail.behind
    rows = bands.rows
    base = (row * height + band * rows) * width * side
    a, b, e = tail.slope[p, o], tail.tilt[p, o], tail.shift[p, o]
    if tail.maxima.size:
        some = tall * rows // height
        top, place = (row * tall + band * some) * wide * side, place + band * some * wide * apart
        sizes = (rows, width, some, wide)
        pooled_row(
            buffer, start, tail.centred, tail.before, base, tail.maxima, top, sizes, window, a, b, e, out, place, apart
        )
    else:
        place = place + band * rows * width * apart
        relu_row(buffer, start, tail.centred, tail.before, base, rows * width, a, b, e, extra, more, out, place, apart)


@borrowing
def convolve(x, bands, scratch, weights, corners, buffer, centred, sums, tail, out):
    """The convolution of the images of all perturbations, or what follows it, to ``out [P, N, O, places, L]``.

    Without a tail, and with c, the sums of :func:`add_sums` go to ``sums [P, O, 3]``; out may be empty then. The
    filters of a perturbation begin at ``corners[p]`` of ``weights [., K, width]``. All arrays are flat.
    """
    step, outputs, count = lanes(x), bands.outputs, bands.origins.size
    places = bands.rows * bands.spatial[1]
    whole, behind = bands.spatial[0] * bands.spatial[1], tail.behind[0] * tail.behind[1]
    for block in range(0, count, bands.together):
        for band in range(bands.spatial[0] // bands.rows):
            for p in range(corners.size):
                convolved_band(x, p, block, band, bands, scratch, weights, corners[p], buffer)
                for g in range(bands.together):
                    for o in range(outputs):
                        start, row = (o * bands.starts.size + g * places) * step, (block + g) * outputs + o
                        base, to = (row * whole + band * places) * step, p * count * outputs + row
                        if tail.slope.size:
                            place = to * behind * step
                            tail_row(buffer, start, tail, row, band, bands, p, o, buffer, NOWHERE, out, place, step)
                        else:
                            if sums.size:
                                skip = bands.skips[block + g]
                                add_sums(buffer, start, centred, base, places, skip, sums, (p * outputs + o) * 3)
                            if out.size:
                                place = (to * whole + band * places) * step
                                for i in range(places):
                                    store(out, place + i * step, load(buffer, start + i * step))


@borrowing
def follow(data, count, bands, tail, extra, rows, out):
    """The tail of a convolution that is in memory: ``data [P, N, O, h w, L]``, ``out [P, N, O, places, L]``.

    Without maxima, out may be data. The residual of channel o in a block begins at ``rows[p, o]`` of ``extra``, and at
    ``rows[p, O]`` more for each block; there is none where it is negative.
    """
    step, blocks, outputs = lanes(data), bands.origins.size, bands.outputs
    whole, behind = bands.spatial[0] * bands.spatial[1] * step, tail.behind[0] * tail.behind[1] * step
    for block in range(blocks):
        for o in range(outputs):
            for p in range(count):
                start, more = (p * blocks + block) * outputs + o, rows[p, o]
                place, start, row = start * behind, start * whole, block * outputs + o
                if more >= 0:
                    more += block * rows[p, outputs]
                tail_row(data, start, tail, row, FIRST, bands, p, o, extra, more, out, place, step)


@borrowing
def slices(padded, apart, offsets, values, channels, bands, buffer, sums, tail, batch, out):
    """Slices of padded blocks ``[N, C, ., L]``, ``apart`` from each other, and what follows them in their channel.

    Without a slope, their sums by :func:`add_sums` to ``sums [P, 3]``; with it, to ``out [P, places behind, B]``.
    """
    step, behind, places = lanes(padded), tail.behind[0] * tail.behind[1], bands.starts.size
    for block in range(bands.origins.size):
        for p in range(offsets.size):
            slice_of_band(padded, block * apart + offsets[p], values[p], bands.starts, buffer)
            row = block * bands.outputs + channels[p]
            if tail.slope.size:
                place = p * behind * batch + bands.origins[block]
                tail_row(buffer, FIRST, tail, row, FIRST, bands, p, FIRST, buffer, NOWHERE, out, place, batch)
            else:
                add_sums(buffer, FIRST, tail.centred, row * places * step, places, bands.skips[block], sums, p * 3)
