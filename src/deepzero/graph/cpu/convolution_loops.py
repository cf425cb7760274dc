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

import math
from typing import Any, NamedTuple

import numpy as np

from deepzero.graph.cpu.compilation import borrowing
from deepzero.graph.cpu.loop_parts import part
from deepzero.graph.cpu.vectors import (
    SHAPES,
    fused,
    kept,
    lanes,
    larger,
    load,
    lowest,
    maximum,
    minus,
    other_tile,
    plus,
    smaller,
    spread,
    store,
    tile,
    times,
    total,
    zeros,
)

REMAINS = 1 / 16
"""What must remain of a variance, :data:`deepzero.graph.tails.REMAINS`."""

PARTIAL = 256
"""Vectors that are added up in the data's dtype before their sum goes to float64."""
SHORT = 4
"""Vectors of a block below which they are added up one by one: a sum of several in flight takes longer to set up."""
FIRST, ONE, NOWHERE = np.int64(0), np.int64(1), np.int64(-1)
"""Constants that numba takes as any number: it would compile a part anew for each plain one."""


class Bands(NamedTuple):
    """A convolution laid out band by band.

    The places of a band are convolved in tiles of those that meet the same terms: no product is with a zero of the
    padding. A tile that has too few has its last one again.

    Attributes:
        size: ``(C, H, W)``.
        image: numbers from one perturbation's images to the next one's.
        origins: where the images of each block begin in them ``[N]``.
        apart: numbers from one place to the next.
        skips: lanes of each block that the one before has already ``[N]``.
        together: blocks that are convolved at a time.
        copied: bands are copied to scratch; whole images without a padding are convolved where they lie.
        rows: of the output in a band.
        stride: rows of the input from one row of the output to the next.
        top: zeros above the image.
        left: zeros to the left of it.
        padded: rows of a padded band.
        across: places of a padded row.
        spatial: ``(h, w)``.
        outputs: O.
        width: O, padded to whole tiles.
        landings: where each block begins in what is written of a perturbation without a tail ``[N]``.
        beyond: numbers there from one perturbation, output and place to the next.
        places: n.
        other: tiles are of the second shape.
        tiles: the first tile of each band, and behind the last ``[bands + 1]``.
        starts: where the vector of each place of each tile begins in the scratch of padded bands, or in the images.
        ends: where its sum goes in a row of the buffer.
        begins: the first term of each tile.
        stops: behind the last term of each tile.
        taps: how far from the start of a place each term lies.
        filters: how far from the first weight of a tile of outputs those of each term lie.
    """

    size: tuple[int, int, int]
    image: int
    origins: Any
    apart: int
    skips: Any
    together: int
    copied: bool
    rows: int
    stride: int
    top: int
    left: int
    padded: int
    across: int
    spatial: tuple[int, int]
    outputs: int
    width: int
    landings: Any
    beyond: tuple[int, int, int]
    places: int
    other: bool
    tiles: Any
    starts: Any
    ends: Any
    begins: Any
    stops: Any
    taps: Any
    filters: Any


class BandTail(NamedTuple):
    """The tail of a convolution, in blocks ``[N, O, h w, L]``: ``relu(y + slope d + tilt c + shift) - relu(y)``.

    Maxima of it may be taken, and of slices the mean over all places in the end.

    Attributes:
        centred: c.
        before: y.
        maxima: M of the windows, ``[N, O, places behind, L]``; empty without pooling.
        behind: height and width behind the pooling, or of the convolution.
        window: kernel, stride, padding and dilation, of height and width each; a stride of 1 without pooling.
        slope: ``[P, O]``, or ``[P, 1]`` where a perturbation has a single channel; empty without a tail.
        tilt: likewise.
        shift: likewise.
        norm: scale, gamma and mean of c of each channel ``[O, 3]``, flat, from which the three above, scratch for one
            perturbation, follow as soon as its sums are known; else empty.
        line: scratch for one channel of a block ``[places behind, L]``, where its mean is taken; else empty.
        share: of a place in the mean, one number.
    """

    centred: Any
    before: Any
    maxima: Any
    behind: tuple[int, int]
    window: tuple[int, int, int, int, int, int, int, int]
    slope: Any
    tilt: Any
    shift: Any
    norm: Any
    line: Any
    share: Any


class Matrix(NamedTuple):
    """A linear layer behind a tail of a single place: a convolution of what the tail gives.

    Attributes:
        bands: the convolution.
        weights: its filters; empty without one.
        rows: scratch for what the tail gives of a perturbation ``[N, O, L]``.
        buffer: scratch for the convolution.
    """

    bands: Bands
    weights: Any
    rows: Any
    buffer: Any


@part
def copied_channel(x, start, height, width, apart, first, rows, across, scratch, place):
    """Rows of a channel of an image, at their places in their padding, where zeros are left out.

    ``x`` is flat, the channel begins at ``start``, its places ``apart`` from each other; ``first`` is its row that the
    ``rows`` of the scratch begin with, each of ``across`` places.
    """
    step = lanes(x)
    for row in range(max(0, -first), min(rows, height - first)):
        target, source = place + row * across * step, start + (first + row) * width * apart
        for u in range(width):
            store(scratch, target + u * step, load(x, source + u * apart))


@part
def copied_band(x, start, bands, first, scratch, place):
    """A band of one image, at its place in its padding: ``scratch [C, padded, across, L]``, where zeros are left out.

    ``x`` is flat, the image begins at ``start``; ``first`` is the image's row that the band begins with.
    """
    channels, height, width = bands.size
    rows, across, apart = bands.padded, bands.across, bands.apart
    for c in range(channels):
        source, target = start + c * height * width * apart, place + (c * rows * across + bands.left) * lanes(x)
        copied_channel(x, source, height, width, apart, first, rows, across, scratch, target)


@part
def convolved_band(x, p, block, band, bands, scratch, weights, corner, buffer):
    """One perturbation's convolution of a band, or of several small blocks, to ``buffer [width, n, L]``."""
    part, row, source, origin = scratch.size // bands.together, bands.places * lanes(x), scratch, FIRST
    if bands.copied:
        for g in range(bands.together):
            start = p * bands.image + bands.origins[block + g]
            copied_band(x, start, bands, band * bands.rows * bands.stride - bands.top, scratch, g * part)
    else:
        source, origin = x, p * bands.image + bands.origins[block]
    starts, ends, taps, filters = bands.starts, bands.ends, bands.taps, bands.filters
    outputs, places = SHAPES[1] if bands.other else SHAPES[0]
    apart = weights.size // bands.width * outputs
    for output in range(bands.width // outputs):
        there, line = corner + output * apart, output * outputs * row
        for t in range(bands.tiles[band], bands.tiles[band + 1]):
            at, begin, stop = t * places, bands.begins[t], bands.stops[t]
            if bands.other:
                other_tile(
                    source, origin, starts, ends, at, taps, filters, begin, stop, weights, there, buffer, line, row
                )
            else:
                tile(source, origin, starts, ends, at, taps, filters, begin, stop, weights, there, buffer, line, row)


@part
def write_band(buffer, bands, p, block, band, out):
    """The convolution of a band, or of several small blocks, to its places in ``out``."""
    further, channel, apart = bands.beyond
    places, step = bands.rows * bands.spatial[1], lanes(buffer)
    for g in range(bands.together):
        place = p * further + bands.landings[block + g] + band * places * apart
        for o in range(bands.outputs):
            start = (o * bands.places + g * places) * step
            for i in range(places):
                store(out, place + o * channel + i * apart, load(buffer, start + i * step))


@part
def slice_of_band(padded, start, value, starts, buffer, place):
    """``value`` times a slice of a padded block, to a part of the buffer ``[n, L]``: the change by one weight."""
    factor = spread(value)
    for i in range(starts.size):
        store(buffer, place + i * lanes(padded), times(factor, load(padded, start + starts[i])))


@part
def add_totals(first, cross, square, out, place):
    """Add the numbers of three vectors to three of ``out``."""
    out[place] += total(first)
    out[place + 1] += total(cross)
    out[place + 2] += total(square)


@part
def add_sums(buffer, start, centred, base, apart, count, skips, block, blocks, out, place):
    """Add ``(d, c d, d^2)``, summed over ``count`` vectors of each block, to three of ``out``.

    The vectors of each of the ``blocks`` from ``block`` on follow those of the one before, their base values ``apart``
    from its, and are summed without their first lanes, as many as ``skips`` says.
    """
    step = lanes(buffer)
    if count < SHORT and count * blocks <= PARTIAL:
        few_first, few_cross, few_square = zeros(buffer), zeros(buffer), zeros(buffer)
        for g in range(blocks):
            for i in range(count):
                d = load(buffer, start + i * step)
                if skips[block + g]:
                    d = kept(d, skips[block + g])
                few_first = plus(few_first, d)
                few_cross = fused(d, load(centred, base + i * step), few_cross)
                few_square = fused(d, d, few_square)
            start, base = start + count * step, base + apart
        add_totals(few_first, few_cross, few_square, out, place)
        return
    all_first, all_cross, all_square, held = zeros(buffer), zeros(buffer), zeros(buffer), 0
    for g in range(blocks):
        for begin in range(0, count, PARTIAL):
            stop = min(begin + PARTIAL, count)
            if held + stop - begin > PARTIAL:
                add_totals(all_first, all_cross, all_square, out, place)
                all_first, all_cross, all_square, held = zeros(buffer), zeros(buffer), zeros(buffer), 0
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
            skip, held = skips[block + g], held + stop - begin
            all_first = plus(all_first, kept(plus(first, first2), skip))
            all_cross = plus(all_cross, kept(plus(cross, cross2), skip))
            all_square = plus(all_square, kept(plus(square, square2), skip))
        start, base = start + count * step, base + apart
    add_totals(all_first, all_cross, all_square, out, place)


@part
def clear(sums, place):
    """Set three of the sums to 0."""
    sums[place] = sums[place + 1] = sums[place + 2] = 0


@part
def samples(bands, step):
    """The number of samples in the blocks."""
    count = bands.skips.size * step
    for block in range(bands.skips.size):
        count -= bands.skips[block]
    return count


@part
def normalized(sums, place, share, tail, o):
    """Slope, tilt and shift of a perturbation's channel from its sums, to the tail's scratch.

    ``share`` is that of a number in a mean. All are NaN where less than ``REMAINS`` of the square of the scale remains.
    """
    mean, cross, square = sums[place] * share, sums[place + 1] * share, sums[place + 2] * share
    scale, gamma = np.float64(tail.norm[3 * o]), np.float64(tail.norm[3 * o + 1])
    dv = 2 * (cross - mean * tail.norm[3 * o + 2]) + (square - mean * mean)
    new = scale * scale + dv
    changed = math.sqrt(new if new >= REMAINS * scale * scale else math.nan)
    both = scale * (scale + changed)
    factor = gamma / (both * changed)
    tail.slope[0, o] = factor * both
    tail.tilt[0, o] = -dv * factor
    tail.shift[0, o] = -factor * both * mean


@part
def relu_row(buffer, start, centred, before, base, beside, count, slope, tilt, shift, extra, more, out, place, apart):
    """``relu(y + v) - relu(y)`` with ``v = slope d + tilt c + shift (+ x)``: ``max(v + min(y, 0), -max(y, 0))``.

    From vectors side by side, with base values ``beside`` each other, to vectors ``apart``; a residual difference x, if
    any, begins at ``more``, else -1.
    """
    side, none = lanes(buffer), zeros(buffer)
    a, b, e = spread(slope), spread(tilt), spread(shift)
    for i in range(count):
        d, y = load(buffer, start + i * side), load(before, base + i * beside)
        v = fused(a, d, fused(b, load(centred, base + i * beside), e))
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
        count = rows * width
        relu_row(buffer, start, tail.centred, tail.before, base, side, count, a, b, e, extra, more, out, place, apart)


@part
def add_mean(tail, begin, rows, wide, out, place, again):
    """The share of some rows of the scratch line in the mean, to a vector of ``out``, or added to it."""
    side, whole = lanes(out), zeros(out)
    for row in range(rows):
        some = zeros(out)
        for i in range(wide):
            some = plus(some, load(tail.line, begin + (row * wide + i) * side))
        whole = plus(whole, some)
    whole = times(spread(tail.share[0]), whole)
    if again:
        whole = plus(whole, load(out, place))
    store(out, place, whole)


@part
def sums_of_band(buffer, bands, p, block, band, centred, sums, tail):
    """Add the sums of each channel of a band, or of several small blocks, to ``sums [P, O, 3]``.

    Those of a tail with a norm begin at 0, and its scratch follows from them.
    """
    step, places, at_once = lanes(buffer), bands.rows * bands.spatial[1], tail.norm.size > 0
    whole = bands.spatial[0] * bands.spatial[1]
    for o in range(bands.outputs):
        base, to = ((block * bands.outputs + o) * whole + band * places) * step, (p * bands.outputs + o) * 3
        start, apart = o * bands.places * step, bands.outputs * whole * step
        if at_once:
            clear(sums, to)
        add_sums(buffer, start, centred, base, apart, places, bands.skips, block, bands.together, sums, to)
    share = 1 / (whole * samples(bands, step))
    for o in range(bands.outputs if at_once else 0):
        normalized(sums, 3 * o, share, tail, o)


@part
def tail_of_band(buffer, bands, block, band, tail, own, out, there):
    """The tail of a band, or of several small blocks, to place ``there`` of the perturbations in ``out``.

    Its coefficients are in row ``own`` of those of the tail.
    """
    step, outputs, count = lanes(buffer), bands.outputs, bands.origins.size
    places, behind = bands.rows * bands.spatial[1], tail.behind[0] * tail.behind[1]
    if bands.together == count and bands.spatial[0] * bands.spatial[1] == 1 and not tail.maxima.size:
        for o in range(outputs):  # the only place of every block, at once
            place, side, start = (there * count * outputs + o) * step, outputs * step, o * bands.places * step
            a, b, e, c, y = tail.slope[own, o], tail.tilt[own, o], tail.shift[own, o], tail.centred, tail.before
            relu_row(buffer, start, c, y, o * step, side, count, a, b, e, buffer, NOWHERE, out, place, side)
        return
    for g in range(bands.together):
        for o in range(outputs):
            start, row = (o * bands.places + g * places) * step, (block + g) * outputs + o
            place = (there * count * outputs + row) * behind * step
            tail_row(buffer, start, tail, row, band, bands, own, o, buffer, NOWHERE, out, place, step)


@borrowing
def convolve(x, bands, scratch, weights, corners, buffer, centred, sums, tail, matrix, out):
    """The convolution of the images of all perturbations, or what follows it, to ``out [P, N, O, places, L]``.

    Without a tail, and with c, the sums of :func:`add_sums` go to ``sums [P, O, 3]``; out may be empty then. A tail
    with a norm, behind whole images that are convolved together, is found from the sums at once: ``sums [O, 3]`` is
    scratch. Only behind such a tail may there be a matrix, which is convolved with in further turns. The filters of a
    perturbation begin at ``corners[p]`` of ``weights [tiles of outputs, C, K, outputs]``. All arrays are flat.
    """
    count, at_once, last = bands.origins.size, tail.norm.size > 0, matrix.weights.size > 0
    turns, target = 1 + (count // matrix.bands.together if last else 0), matrix.rows if last else out
    for block in range(0, count, bands.together):
        for band in range(bands.spatial[0] // bands.rows):
            for p in range(corners.size):
                own, there = FIRST if at_once else p, FIRST if last else p
                for turn in range(turns):
                    if turn == 0:
                        convolution, source, filters, sum_of = bands, x, weights, buffer
                        image, first, corner = p, block, corners[p]
                    else:
                        convolution, source, filters, sum_of = matrix.bands, target, matrix.weights, matrix.buffer
                        image, first, corner = 0, (turn - 1) * matrix.bands.together, 0
                    convolved_band(source, image, first, band, convolution, scratch, filters, corner, sum_of)
                    if turn == 0 and sums.size:
                        sums_of_band(buffer, bands, own, block, band, centred, sums, tail)
                    if turn == 0 and tail.slope.size:
                        tail_of_band(buffer, bands, block, band, tail, own, target, there)
                    elif out.size:
                        write_band(sum_of, convolution, p, first, band, out)


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
    """The tail of slices of padded blocks ``[N, C, ., L]``, ``apart`` from each other, in their channel.

    It goes to ``out [P, places behind, B]`` band by band, or its mean to ``out [P, 1, B]``. A tail with a norm, of
    slices that are a single band, is found from the sums of :func:`add_sums` at once: the buffer holds all blocks then,
    and ``sums [3]`` is scratch.
    """
    side, (tall, wide), count, places = lanes(padded), tail.behind, bands.origins.size, bands.starts.size
    further, behind = bands.rows * bands.stride * bands.across * side, 1 if tail.line.size else tall * wide
    some, at_once = tall * bands.rows // bands.spatial[0], tail.norm.size > 0
    share = 1 / (places * samples(bands, side))
    for first in range(0, count, count if at_once else 1):
        for p in range(offsets.size):
            own, o, stop = (FIRST, channels[p], count) if at_once else (p, FIRST, first + 1)
            if at_once:
                for block in range(count):
                    begin = block * apart + offsets[p]
                    slice_of_band(padded, begin, values[p], bands.starts, buffer, block * places * side)
                base, between = o * places * side, bands.outputs * places * side
                clear(sums, FIRST)
                add_sums(buffer, FIRST, tail.centred, base, between, places, bands.skips, FIRST, count, sums, FIRST)
                normalized(sums, FIRST, share, tail, o)
            for block in range(first, stop):
                row, place = block * bands.outputs + channels[p], p * behind * batch + bands.origins[block]
                for band in range(bands.spatial[0] // bands.rows):
                    start = block * places * side if at_once else FIRST
                    if not at_once:
                        begin = block * apart + band * further + offsets[p]
                        slice_of_band(padded, begin, values[p], bands.starts, buffer, FIRST)
                    if tail.line.size:
                        line = tail.line
                        tail_row(buffer, start, tail, row, band, bands, own, o, buffer, NOWHERE, line, FIRST, side)
                        add_mean(tail, band * some * wide * side, some, wide, out, place, band > 0)
                    else:
                        tail_row(buffer, start, tail, row, band, bands, own, o, buffer, NOWHERE, out, place, batch)
