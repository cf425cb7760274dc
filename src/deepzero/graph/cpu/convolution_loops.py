"""Compiled loops for convolutions and what follows them, with samples in the lanes of a vector.

Images lie with their samples last, ``[C, H, W, B]``: a vector is one place of one channel in as many samples as a
register holds (:mod:`~deepzero.graph.cpu.vectors`), so any number of channels and any width fills it. Loops go over
*blocks* of samples, one vector wide. A block's image, with its padding, and its convolution are copied to scratch in
the core's cache, and all perturbations pass through before the next block: base values come from memory once a chunk.

Floor: a tile makes 24 fused products (12 without AVX-512) for 10 (7) reads, so a convolution is bound by its
arithmetic, two vectors of products a cycle; what goes behind it reads and writes each difference once.

Legend: P perturbations, C input and O output channels, H, W height and width, h, w those of the output, B samples, L
lanes, N blocks, K terms of a sum; n places of the blocks that are convolved together, padded to whole tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
PART = 2048
"""Entries of a channel that are gone through for all perturbations before the next ones."""


class Blocks(NamedTuple):
    """How a convolution is done in blocks of samples.

    Attributes:
        firsts: first sample of each block ``[N]``.
        skips: lanes of each block that the one before has already ``[N]``.
        together: blocks that are convolved at a time.
        size: ``(C, H, W, B)``.
        pads: zeros at the top, at the bottom, left and right.
        places: h w.
        outputs: O.
        width: O, padded to whole tiles.
        starts: where the vector of each place begins in the scratch of padded blocks ``[n]``.
        taps: how far from there the terms of its sum lie ``[K]``.
    """

    firsts: Any
    skips: Any
    together: int
    size: tuple[int, int, int, int]
    pads: tuple[int, int, int, int]
    places: int
    outputs: int
    width: int
    starts: Any
    taps: Any


class BlockTail(NamedTuple):
    """What follows a convolution, in blocks ``[N, O, h w, L]``: ``relu(y + slope d + tilt c + shift) - relu(y)``.

    Attributes:
        centred: c.
        before: y.
        maxima: M of the windows, ``[N, O, places behind, L]``; empty without pooling.
        sizes: h, w, and those behind the pooling.
        window: kernel, stride, padding and dilation, of height and width each.
        slope: ``[P, O]``, or ``[P]`` where a perturbation has a single channel.
        tilt: likewise.
        shift: likewise.
    """

    centred: Any
    before: Any
    maxima: Any
    sizes: tuple[int, int, int, int]
    window: tuple[int, int, int, int, int, int, int, int]
    slope: Any
    tilt: Any
    shift: Any


@part
def padded_block(x, start, size, first, pads, scratch, place):
    """A block of one perturbation's image, inside of its padding: ``scratch [C, H + pads, W + pads, L]``, zero outside.

    ``x`` is flat, the image begins at ``start``; ``size`` is ``(C, H, W, B)``, ``pads`` are top, bottom, left, right.
    """
    channels, height, width, batch = size
    step, wide = lanes(x), width + pads[2] + pads[3]
    tall = height + pads[0] + pads[1]
    for c in range(channels):
        for y in range(height):
            source = start + (c * height + y) * width * batch + first
            target = place + ((c * tall + y + pads[0]) * wide + pads[2]) * step
            for u in range(width):
                store(scratch, target + u * step, load(x, source + u * batch))


@part
def convolved_block(scratch, starts, taps, weights, corner, width, buffer):
    """The convolution of a block: ``buffer [width, n, L]`` from the sums of tiles. ``weights [K, width]`` at corner."""
    row = starts.size * lanes(scratch)
    for first in range(0, starts.size, PLACES):
        for output in range(0, width, OUTPUTS):
            place = output * row + first * lanes(scratch)
            tile(scratch, starts, first, taps, weights, corner + output, width, buffer, place, row)


@part
def slice_of_block(padded, start, value, starts, buffer):
    """``value`` times a slice of a padded block, to ``buffer [n, L]``: the change by one weight."""
    factor = spread(value)
    for i in range(starts.size):
        store(buffer, i * lanes(padded), times(factor, load(padded, start + starts[i])))


@part
def add_sums(buffer, start, centred, base, count, skip, out, place):
    """Add ``(d, c d, d^2)``, summed over ``count`` vectors without their first ``skip`` lanes, to three of ``out``."""
    step = lanes(buffer)
    for part in range(0, count, PARTIAL):
        stop = min(part + PARTIAL, count)
        even = (stop - part) // 2 * 2 + part
        first, cross, square = zeros(buffer), zeros(buffer), zeros(buffer)
        first2, cross2, square2 = zeros(buffer), zeros(buffer), zeros(buffer)
        for i in range(part, even, 2):
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
def relu_block(buffer, start, apart, tail, base, count, a, b, e, out, place, step):
    """``relu(y + v) - relu(y)`` with ``v = a d + b c + e``: ``max(v + min(y, 0), -max(y, 0))``.

    From vectors ``apart`` in buffer, from ``start`` on, to vectors ``step`` apart from ``place`` on.
    """
    side, none = lanes(buffer), zeros(buffer)
    slope, tilt, shift = spread(a), spread(b), spread(e)
    for i in range(count):
        d, y = load(buffer, start + i * apart), load(tail.before, base + i * side)
        v = fused(slope, d, fused(tilt, load(tail.centred, base + i * side), shift))
        store(out, place + i * step, larger(smaller(minus(none, y), none), plus(v, smaller(none, y))))


@part
def pooled_block(buffer, start, apart, tail, base, top, a, b, e, out, place, step):
    """``max (relu(y) - M + r)`` over windows, r being the change that :func:`relu_block` gives.

    From vectors that lie ``apart`` in buffer; base values begin at ``base``, maxima at ``top``.
    """
    side, none, window = lanes(buffer), zeros(buffer), tail.window
    slope, tilt, shift = spread(a), spread(b), spread(e)
    height, width, tall, wide = tail.sizes
    for place_y in range(tall):
        for place_x in range(wide):
            here = place_y * wide + place_x
            peak, best = load(tail.maxima, top + here * side), lowest(buffer)
            for row in range(window[0]):
                y0 = place_y * window[2] - window[4] + row * window[6]
                if y0 < 0 or y0 >= height:
                    continue
                for column in range(window[1]):
                    x0 = place_x * window[3] - window[5] + column * window[7]
                    if x0 < 0 or x0 >= width:
                        continue
                    i = y0 * width + x0
                    d, y = load(buffer, start + i * apart), load(tail.before, base + i * side)
                    v = fused(slope, d, fused(tilt, load(tail.centred, base + i * side), shift))
                    floor = smaller(minus(none, y), none)
                    change = larger(floor, plus(v, smaller(none, y)))
                    best = maximum(best, plus(minus(minus(none, floor), peak), change))
            store(out, place + here * step, best)


@part
def tail_of_block(buffer, start, apart, tail, row, a, b, e, out, place, step):
    """The relu, or the maxima of it, of row ``row`` (block and channel) of the base values."""
    side = lanes(buffer)
    height, width, tall, wide = tail.sizes
    base, top = row * height * width * side, row * tall * wide * side
    if tail.maxima.size:
        pooled_block(buffer, start, apart, tail, base, top, a, b, e, out, place, step)
    else:
        relu_block(buffer, start, apart, tail, base, height * width, a, b, e, out, place, step)


@part
def convolved_together(x, p, block, blocks, scratch, weights, corner, buffer):
    """One perturbation's convolution of the blocks from ``block`` on, to ``buffer [width, n, L]``."""
    channels, height, width, batch = blocks.size
    image, padded = channels * height * width * batch, scratch.size // blocks.together
    for g in range(blocks.together):
        padded_block(x, p * image, blocks.size, blocks.firsts[block + g], blocks.pads, scratch, g * padded)
    convolved_block(scratch, blocks.starts, blocks.taps, weights, corner, blocks.width, buffer)


@borrowing
def convolve(x, blocks, scratch, weights, corners, buffer, centred, sums, out):
    """``out [P, O, h w, B]``, the convolution of ``x [P, C, H, W, B]``, and ``sums [P, O, 3]`` of :func:`add_sums`.

    All arrays are flat; sums or out may be empty. The filters of a perturbation begin at ``corners[p]`` of ``weights
    [., K, width]``.
    """
    step, places, outputs, batch = lanes(x), blocks.places, blocks.outputs, blocks.size[3]
    for block in range(0, blocks.firsts.size, blocks.together):
        for p in range(corners.size):
            convolved_together(x, p, block, blocks, scratch, weights, corners[p], buffer)
            for g in range(blocks.together):
                first, skip = blocks.firsts[block + g], blocks.skips[block + g]
                for o in range(outputs):
                    row = (o * blocks.starts.size + g * places) * step
                    if sums.size:
                        base = ((block + g) * outputs + o) * places * step
                        add_sums(buffer, row, centred, base, places, skip, sums, (p * outputs + o) * 3)
                    if out.size:
                        place = (p * outputs + o) * places * batch + first
                        for i in range(places):
                            store(out, place + i * batch, load(buffer, row + i * step))


@borrowing
def convolve_to_tail(x, blocks, scratch, weights, corners, buffer, tail, out):
    """The convolution of ``x [P, C, H, W, B]`` and what follows it, to ``out [P, O, places behind, B]``."""
    step, outputs, batch = lanes(x), blocks.outputs, blocks.size[3]
    behind = tail.sizes[2] * tail.sizes[3]
    for block in range(0, blocks.firsts.size, blocks.together):
        for p in range(corners.size):
            convolved_together(x, p, block, blocks, scratch, weights, corners[p], buffer)
            for g in range(blocks.together):
                first = blocks.firsts[block + g]
                for o in range(outputs):
                    start = (o * blocks.starts.size + g * blocks.places) * step
                    a, b, e = tail.slope[p, o], tail.tilt[p, o], tail.shift[p, o]
                    place = (p * outputs + o) * behind * batch + first
                    row = (block + g) * outputs + o
                    tail_of_block(buffer, start, step, tail, row, a, b, e, out, place, batch)


@borrowing
def sum_slices(padded, apart, offsets, values, channels, blocks, buffer, centred, sums):
    """:func:`add_sums` of slices of the padded blocks ``[N, C, ., L]``, ``apart`` from each other: ``sums [P, 3]``."""
    length = blocks.places * lanes(padded)
    for block in range(blocks.firsts.size):
        for p in range(offsets.size):
            slice_of_block(padded, block * apart + offsets[p], values[p], blocks.starts, buffer)
            base = (block * blocks.outputs + channels[p]) * length
            add_sums(buffer, 0, centred, base, blocks.places, blocks.skips[block], sums, p * 3)


@borrowing
def slices_to_tail(padded, apart, offsets, values, channels, blocks, buffer, tail, out):
    """The same slices and what follows them in their channel, to ``out [P, places behind, B]``."""
    step, batch, behind = lanes(padded), blocks.size[3], tail.sizes[2] * tail.sizes[3]
    for block in range(blocks.firsts.size):
        for p in range(offsets.size):
            slice_of_block(padded, block * apart + offsets[p], values[p], blocks.starts, buffer)
            a, b, e = tail.slope[p, 0], tail.tilt[p, 0], tail.shift[p, 0]
            row, place = block * blocks.outputs + channels[p], p * behind * batch + blocks.firsts[block]
            tail_of_block(buffer, 0, step, tail, row, a, b, e, out, place, batch)


@borrowing
def planes_to_tail(data, count, blocks, tail, out):
    """What follows a convolution that is in memory: ``data [P, O, h w, B]``, ``out [P, O, places behind, B]``."""
    batch, outputs, behind = blocks.size[3], blocks.outputs, tail.sizes[2] * tail.sizes[3]
    for block in range(blocks.firsts.size):
        first = blocks.firsts[block]
        for o in range(outputs):
            for p in range(count):
                start, place = (p * outputs + o) * blocks.places * batch, (p * outputs + o) * behind * batch
                a, b, e = tail.slope[p, o], tail.tilt[p, o], tail.shift[p, o]
                row = block * outputs + o
                tail_of_block(data, start + first, batch, tail, row, a, b, e, out, place + first, batch)


@borrowing
def relu_planes(data, extra, rows, centred, before, slope, tilt, shift):
    """In place, ``d -> relu(y + v) - relu(y)`` with ``v = slope d + tilt c + shift``, plus a residual difference.

    ``data [P, O, S]``; ``centred [O, S]`` and ``before [O, S]``, y; the residual of channel o is ``extra[rows[p, o]]``,
    or none where that is negative. By parts that stay in the cache for all perturbations.
    """
    count, outputs, length = data.shape
    for o in range(outputs):
        for start in range(0, length, PART):
            stop = min(start + PART, length)
            c, y = centred[o, start:stop], before[o, start:stop]
            for p in range(count):
                d, a, b, e, row = data[p, o, start:stop], slope[p, o], tilt[p, o], shift[p, o], rows[p, o]
                if row < 0:
                    for i in range(d.size):
                        v = a * d[i] + b * c[i] + e
                        floor = -y[i] if y[i] > 0 else 0 * e
                        v += 0 * e if y[i] > 0 else y[i]
                        d[i] = floor if v < floor else v
                else:
                    x = extra[row, start:stop]
                    for i in range(d.size):
                        v = a * d[i] + b * c[i] + e + x[i]
                        floor = -y[i] if y[i] > 0 else 0 * e
                        v += 0 * e if y[i] > 0 else y[i]
                        d[i] = floor if v < floor else v
