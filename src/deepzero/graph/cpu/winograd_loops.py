"""Compiled loops for 3x3 convolutions by Winograd's algorithm, with samples in the lanes of a vector.

A convolution of a filter g with an image, 4x4 places Y at a time out of the 6x6 numbers X that they see, is

    Y = A^T [(G g G^T) * (B^T X B)] A        (* number by number, summed over channels),

which takes 36 products a channel in place of 144. The algorithm is Toom and Cook's: polynomials are multiplied by their
values at the points 0, 5/8, -5/8, 3/2, -3/2 and infinity, transposed. (S. Winograd, Arithmetic Complexity of
Computations, SIAM 1980; for networks, A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR
2016, with the points 0, 1, -1, 2, -2; B. Barabasz et al., Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks, ACM TOMS 2020, on choosing points.) Those here are exact in binary, and of all
that were tried they round best: the error of 64 channels in float32 is 8e-7 of the result, with Lavin and Gray's
1.6e-6, and that of products one by one 4e-7.

Differences lie as in :mod:`deepzero.graph.cpu.convolution_loops`, so that the transformations, too, are arithmetic of
whole vectors.

Floor: the products, as in a tile, of which a filter takes a quarter. A square of a channel goes to the core's cache
transformed, 36 vectors, and comes back from it once for each tile of outputs; with 64 channels of 8x8, products take
two thirds of the time, with 16 channels of 32x32 a third.

Legend: P perturbations, C input and O output channels, H, W height and width, h, w those of the output, L lanes, N
blocks; T squares of a band, of 4x4 places; entries: of a square, 36; n squares, padded to whole tiles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from deepzero.graph.cpu.compilation import borrowing
from deepzero.graph.cpu.convolution_loops import FIRST, ONE, add_sums, copied_channel
from deepzero.graph.cpu.loop_parts import part
from deepzero.graph.cpu.vectors import SHAPES, lanes, other_tile, store, tile, transformation, zeros

SIDE = 4
"""Places of a square, in each direction."""
SEEN = SIDE + 2
"""Numbers of the image that they see, in each direction."""
ENTRIES = SEEN * SEEN
A, B = 5 / 8, 3 / 2
"""The points, besides 0 and infinity, each with both signs."""

_PAIRS = (
    (1, 0, 0, 0, 0, 0),
    (0, 1, 1, 0, 0, 0),
    (0, 1, -1, 0, 0, 0),
    (0, 0, 0, 1, 1, 0),
    (0, 0, 0, 1, -1, 0),
    (0, 0, 0, 0, 0, 1),
)
"""Sum and difference of the two points of a pair: even powers of a polynomial and odd ones."""
_IMAGE = (
    (A * A * B * B, 0, -A * A - B * B, 0, 1, 0),
    (0, 0, -B * B, 0, 1, 0),
    (0, -A * B * B, 0, A, 0, 0),
    (0, 0, -A * A, 0, 1, 0),
    (0, -A * A * B, 0, B, 0, 0),
    (0, A * A * B * B, 0, -A * A - B * B, 0, 1),
)
_PLACES = (
    (1, 1, 0, 1, 0, 0),
    (0, 0, A, 0, B, 0),
    (0, A**2, 0, B**2, 0, 0),
    (0, 0, A**3, 0, B**3, 1),
)
FILTER = (
    (1 / (A * A * B * B), 0.0, 0.0),
    *(
        (1 / (2 * p * p * (p * p - q * q)), s / (2 * p * (p * p - q * q)), 1 / (2 * (p * p - q * q)))
        for p, q in ((A, B), (B, A))
        for s in (1, -1)
    ),
    (0.0, 0.0, 1.0),
)
"""G: the values of a filter at the points, over what the others' polynomials are there."""

forth = transformation(_IMAGE, _PAIRS, limited=False)
back = transformation(_PAIRS, _PLACES, limited=True)


class Squares(NamedTuple):
    """A convolution laid out in squares, band by band.

    Attributes:
        size: ``(C, H, W)``.
        blocks: N.
        skips: lanes of each block that the one before has already ``[N]``.
        spatial: ``(h, w)``.
        top: zeros above the image.
        left: zeros to the left of it.
        down: squares of a band, from top to bottom.
        along: squares from left to right.
        outputs: O.
        width: O, padded to whole tiles.
        other: tiles are of the second shape.
        apart: numbers from one entry of all transformed squares to the next.
        row: numbers from one output's products to the next one's.
        deep: numbers from one entry of the products to the next.
        starts: where the vector of each square of each tile begins among those transformed, entry by entry.
        ends: where its sum goes among the products.
        taps: how far from the start of a square each channel lies.
        filters: how far from the first weight of a tile of outputs those of each channel lie.
    """

    size: tuple[int, int, int]
    blocks: int
    skips: Any
    spatial: tuple[int, int]
    top: int
    left: int
    down: int
    along: int
    outputs: int
    width: int
    other: bool
    apart: int
    row: int
    deep: int
    starts: Any
    ends: Any
    taps: Any
    filters: Any


@part
def transformed_band(x, start, first, squares, padded, spectrum):
    """The squares of a band of an image that begins at ``start``, transformed, to ``spectrum [entries, C, T, L]``.

    ``padded [rows, places, L]`` is scratch for a channel of the band, with zeros around it; ``first`` is the image's
    row that it begins with.
    """
    step, (channels, height, width) = lanes(x), squares.size
    rows, across = SIDE * squares.down + 2, SIDE * squares.along + 2
    for c in range(channels):
        source, place = start + c * height * width * step, squares.left * step
        copied_channel(x, source, height, width, step, first, rows, across, padded, place)
        for i in range(squares.down):
            for j in range(squares.along):
                corner, to = (i * across + j) * SIDE * step, ((c * squares.down + i) * squares.along + j) * step
                below, beside = SEEN * squares.apart, squares.apart
                forth(padded, corner, across * step, step, spectrum, to, below, beside, ONE, ONE)


@part
def multiplied(spectrum, squares, weights, output, products):
    """The products of a tile of outputs, summed over channels, to ``products [entries, outputs of a tile, n, L]``."""
    starts, ends, taps, filters = squares.starts, squares.ends, squares.taps, squares.filters
    outputs, places = SHAPES[1] if squares.other else SHAPES[0]
    channels, tiles = squares.size[0], starts.size // (ENTRIES * places)
    for entry in range(ENTRIES):
        corner = (output * ENTRIES + entry) * channels * outputs
        for t in range(entry * tiles, (entry + 1) * tiles):
            at, row, o = t * places, squares.row, FIRST
            if squares.other:
                other_tile(spectrum, o, starts, ends, at, taps, filters, o, channels, weights, corner, products, o, row)
            else:
                tile(spectrum, o, starts, ends, at, taps, filters, o, channels, weights, corner, products, o, row)


@borrowing
def convolve_by_squares(x, count, squares, padded, spectrum, weights, products, centred, sums, out):
    """The convolutions of all perturbations, to ``out [P, N, O, h w, L]``, and with ``sums [P, O, 3]`` their sums.

    Those are as in :func:`~deepzero.graph.cpu.convolution_loops.add_sums`, with c. ``weights`` are transformed,
    ``[tiles of outputs, entries, C, outputs of a tile]``. All arrays are flat.
    """
    step, outputs, blocks = lanes(x), squares.outputs, squares.blocks
    (channels, height, width), (tall, wide) = squares.size, squares.spatial
    rows, many = SIDE * squares.down, (SHAPES[1] if squares.other else SHAPES[0])[0]
    for block in range(blocks):
        for top in range(0, tall, rows):
            some = min(rows, tall - top)
            for i in range(0, padded.size, step):
                store(padded, i, zeros(x))
            for p in range(count):
                start = (p * blocks + block) * channels * height * width * step
                transformed_band(x, start, top - squares.top, squares, padded, spectrum)
                for o in range(outputs):
                    if o % many == 0:
                        multiplied(spectrum, squares, weights, o // many, products)
                    place = (((p * blocks + block) * outputs + o) * tall + top) * wide * step
                    for i in range(squares.down):
                        for j in range(squares.along):
                            corner = o % many * squares.row + (i * squares.along + j) * step
                            to, below = place + (i * wide + j) * SIDE * step, SEEN * squares.deep
                            high, broad = some - i * SIDE, wide - j * SIDE
                            back(products, corner, below, squares.deep, out, to, wide * step, step, high, broad)
                    if sums.size:
                        base, to = ((block * outputs + o) * tall + top) * wide * step, (p * outputs + o) * 3
                        add_sums(out, place, centred, base, FIRST, some * wide, squares.skips, block, ONE, sums, to)
