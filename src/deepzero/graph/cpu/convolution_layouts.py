"""Layouts of convolutions of images on a CPU: samples in blocks, bands of rows, tiles of outputs and places.

A layout depends on sizes alone, and is made once for each. The loops that it is for are those of
:mod:`deepzero.graph.cpu.convolution_loops`.

Legend: p perturbations, b samples, c input and o output channels, h height, w width; places: h w; blocks of samples as
wide as a vector, lanes its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.windows import ConvolutionGeometry

SCRATCH = 768 << 10
"""Bytes of what is convolved at a time: a part of a core's cache, of which base values and weights need their own.

With 1 MiB of cache, 64 channels of 8x8 were 5 % and 18 channels of 16x16 9 % faster than at 640 KiB, which cuts them
into bands.
"""

TILE = 40
"""Fused products of vectors that take as long as beginning and end of a tile's sums."""


@cache
def loops() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import convolution_loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return convolution_loops


@cache
def vectors() -> Any:
    """The vectors that they are made of."""
    from deepzero.graph.cpu import vectors as found  # noqa: PLC0415 - as above

    return found


class Split(NamedTuple):
    """Samples in blocks: the first sample of each, and how many of its lanes the one before has already."""

    firsts: Int64[Tensor, " n"]
    skips: Int64[Tensor, " n"]
    lanes: int

    @classmethod
    def of(cls, batch: int, dtype: torch.dtype) -> Split:
        """Blocks one behind the other; the last one ends with the last sample."""
        lanes = vectors().BYTES // dtype.itemsize
        plain = torch.arange(-(-batch // lanes)) * lanes
        firsts = plain.clamp(max=batch - lanes)
        return cls(firsts, plain - firsts, lanes)

    def blocks(self, samples: Float[Tensor, " b *rest"]) -> Float[Tensor, "n *rest lane"]:
        """Samples in blocks."""
        return self.stacked(samples.unsqueeze(0))[0]

    def stacked(self, stacked: Float[Tensor, "p b *rest"]) -> Float[Tensor, "p n *rest lane"]:
        """The samples of each perturbation in blocks."""
        (count, batch, *rest), lanes = stacked.shape, self.lanes
        whole = batch // lanes
        out = stacked.new_empty(count, len(self.firsts), *rest, lanes)
        out[:, :whole] = stacked[:, : whole * lanes].reshape(count, whole, lanes, *rest).movedim(2, -1)
        if whole < len(self.firsts):
            out[:, whole] = stacked[:, batch - lanes :].movedim(1, -1)
        return out

    def remembered(self, value: Value) -> Float[Tensor, " numbers"]:
        """A base value in blocks, flat, once a step."""
        flat: Tensor = value.remember("blocks", lambda: self.blocks(value.base).flatten())
        return flat


@dataclass(frozen=True)
class ConvolutionSizes:
    """The sizes of a convolution, on which its layout depends.

    Attributes:
        size: channels, height and width of what enters.
        spatial: height and width of what leaves.
        kernel: its own height and width, and so on.
        stride: from one place to the next.
        dilation: from one term to the next.
        pads: zeros before and behind, of height and of width.
    """

    size: tuple[int, int, int]
    spatial: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def of(cls, geometry: ConvolutionGeometry, size: Sequence[int], shape: Sequence[int]) -> ConvolutionSizes:
        """That of a convolution of images of ``size`` to ``shape``."""
        kernel, stride, dilation, pads = geometry.kernel, geometry.stride, geometry.dilation, geometry.pads
        parts = (size, shape[2:], kernel, stride, dilation, pads)
        return cls(*(tuple(part) for part in parts))  # type: ignore[arg-type]

    @property
    def across(self) -> int:
        """Places of a padded row."""
        return self.size[2] + sum(self.pads[1])

    def padded(self, rows: int) -> int:
        """Padded rows that some rows of the output are made of."""
        return (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    def is_plain(self, rows: int) -> bool:
        """True if some rows of the output are all that there are, and made of images without a padding."""
        return rows == self.spatial[0] and not any(map(any, self.pads)) and self.padded(rows) == self.size[1]

    def starts(self, rows: int) -> Int64[Tensor, " places"]:
        """The start of the window of each place of some rows, in a padded image."""
        return _grid((rows, self.spatial[1]), self.stride, self.across)

    def taps(self) -> Int64[Tensor, " taps"]:
        """The distances of the entries of a window from its start."""
        return _grid(self.kernel, self.dilation, self.across)

    def inside(self) -> Bool[Tensor, "places taps"]:
        """True for the entries of the window of each place that are none of the padding."""
        down, along = (
            _inside(self.size[axis + 1], out, self.kernel[axis], self.stride[axis], self.dilation[axis], before)
            for axis, (out, (before, _)) in enumerate(zip(self.spatial, self.pads, strict=True))
        )
        return (down[:, None, :, None] & along[None, :, None, :]).flatten(0, 1).flatten(1)


def _grid(counts: Sequence[int], steps: Sequence[int], across: int) -> Int64[Tensor, " places"]:
    rows, columns = (torch.arange(n) * s for n, s in zip(counts, steps, strict=True))
    return (rows.unsqueeze(1) * across + columns).flatten()


def _inside(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> Bool[Tensor, "out kernel"]:
    place = torch.arange(out).unsqueeze(1) * stride + torch.arange(kernel) * dilation - before
    return (place >= 0) & (place < size)


class Tiles(NamedTuple):
    """The tiles of a convolution, as in the loops' record, in numbers of places."""

    tiles: list[int]
    starts: list[int]
    ends: list[int]
    begins: list[int]
    stops: list[int]
    taps: Int64[Tensor, " terms"]
    filters: Int64[Tensor, " terms"]

    @classmethod
    def of(cls, sizes: ConvolutionSizes, rows: int, together: int, places: int) -> Tiles:
        """Of ``places`` each, for bands of ``rows`` of as many blocks as are convolved together."""
        kinds, kind = torch.unique(sizes.inside(), dim=0, return_inverse=True)
        taps, area = sizes.taps(), sizes.padded(rows) * sizes.across
        terms = [mask.nonzero().squeeze(1) for mask in kinds]
        channels = torch.arange(sizes.size[0]).unsqueeze(1)
        ends = torch.tensor([0, *(sizes.size[0] * len(some) for some in terms)]).cumsum(0).tolist()
        found = cls(
            [0],
            [],
            [],
            [],
            [],
            torch.cat([(channels * area + taps[some]).flatten() for some in terms]),
            torch.cat([(channels * len(taps) + some).flatten() for some in terms]),
        )
        starts, number = sizes.starts(rows), rows * sizes.spatial[1]
        for band in kind.view(-1, number):
            for k in range(len(kinds)):
                here = (band == k).nonzero().squeeze(1)
                block = torch.arange(together).unsqueeze(1)
                found._add((block * (sizes.size[0] * area) + starts[here]).flatten().tolist(), found.starts, places)
                count = found._add((block * number + here).flatten().tolist(), found.ends, places)
                found.begins.extend([ends[k]] * count)
                found.stops.extend([ends[k + 1]] * count)
            found.tiles.append(len(found.begins))
        return found

    @staticmethod
    def _add(some: list[int], to: list[int], places: int) -> int:
        """Add places in whole tiles, the last one again and again if it must be; returns the number of tiles."""
        to.extend(some + some[-1:] * (-len(some) % places))
        return -(-len(some) // places)

    @property
    def products(self) -> int:
        """Products of a place and an output, for each of both that a tile has."""
        return sum(self.stops) - sum(self.begins)


class BandLayout(NamedTuple):
    """A convolution laid out for the loops.

    Attributes:
        bands: the record of the loops.
        scratch: numbers of the padded bands that are convolved together.
        buffer: numbers of the convolution of these bands.
        tile: outputs of a tile.
        work: fused products of vectors that it takes as long as, for a block of samples.
    """

    bands: Any
    scratch: int
    buffer: int
    tile: int
    work: float


@lru_cache(maxsize=256)
def layout_of(
    sizes: ConvolutionSizes,
    batch: int,
    outputs: int,
    step: int | None,
    dtype: torch.dtype,
    *,
    samples_last: bool,
    in_order: bool = False,
) -> BandLayout:
    """The layout of a convolution of so many samples to so many channels.

    What enters lies with ``samples_last``, or in blocks; what leaves without a tail, with samples last if ``in_order``.
    A band has ``step`` rows, or a multiple, all of the same number; None is the whole image. Of the shapes of tiles it
    is the one with the fewest products.
    """
    split = Split.of(batch, dtype)
    found = []
    for other, (many, places) in enumerate(vectors().SHAPES):
        width = -(-outputs // many) * many
        rows, together = _at_a_time(sizes, len(split.firsts), width, step, split.lanes * dtype.itemsize)
        tiles = Tiles.of(sizes, rows, together, places)
        found.append((tiles.products * width * places, other, rows, together, width, tiles))
    _, other, rows, together, width, tiles = min(found, key=lambda one: one[0])
    image = sizes.size[0] * sizes.padded(rows) * sizes.across
    lanes, many, starts = split.lanes, vectors().SHAPES[other][0], torch.tensor(tiles.starts)
    copied = not sizes.is_plain(rows) or (samples_last and together < len(split.firsts))
    in_blocks = torch.arange(len(split.firsts)) * (image * lanes)
    between, begins = (batch, split.firsts) if samples_last and not copied else (lanes, in_blocks)
    count, whole = together * rows * sizes.spatial[1], math.prod(sizes.spatial)
    channel, apart = (whole * batch, batch) if in_order else (whole * lanes, lanes)
    landings = split.firsts if in_order else torch.arange(len(split.firsts)) * (outputs * channel)
    further = outputs * channel * (1 if in_order else len(split.firsts))
    bands = loops().Bands(
        sizes.size,
        math.prod(sizes.size) * (batch if samples_last else len(split.firsts) * lanes),
        (split.firsts if samples_last else torch.arange(len(split.firsts)) * (math.prod(sizes.size) * lanes)).numpy(),
        batch if samples_last else lanes,
        split.skips.numpy(),
        together,
        copied,
        rows,
        sizes.stride[0],
        sizes.pads[0][0],
        sizes.pads[1][0],
        sizes.padded(rows),
        sizes.across,
        sizes.spatial,
        outputs,
        width,
        landings.numpy(),
        (further, channel, apart),
        count,
        bool(other),
        torch.tensor(tiles.tiles).numpy(),
        (starts % image * between + begins[starts // image]).numpy(),
        (torch.tensor(tiles.ends) * lanes).numpy(),
        torch.tensor(tiles.begins).numpy(),
        torch.tensor(tiles.stops).numpy(),
        (tiles.taps * between).numpy(),
        (tiles.filters * many).numpy(),
    )
    places = vectors().SHAPES[other][1]
    work = (tiles.products * width * places + len(tiles.begins) * (width // many) * TILE) / together
    return BandLayout(bands, together * image * lanes, width * count * lanes, many, work)


def _at_a_time(sizes: ConvolutionSizes, blocks: int, width: int, step: int | None, vector: int) -> tuple[int, int]:
    """Rows of a band and blocks that are convolved together, as far as the scratch goes; a vector's bytes are given."""
    height, wide = sizes.spatial

    def taken(rows: int) -> int:
        return (sizes.size[0] * sizes.padded(rows) * sizes.across + width * rows * wide) * vector

    rows = rows_of_a_band(height, step, lambda rows: taken(rows) <= SCRATCH)
    together = [n for n in range(blocks, 1, -1) if blocks % n == 0 and taken(rows) * n <= SCRATCH]
    return rows, together[0] if rows == height and together else 1


def rows_of_a_band(height: int, step: int | None, fits: Callable[[int], bool]) -> int:
    """The most rows that fit, in bands of the same number of steps; the fewest if none do, all without a step."""
    choices = [r for r in range(height, 0, -1) if step is not None and height % r == 0 and r % step == 0] or [height]
    return next((r for r in choices if fits(r)), choices[-1])


def in_tiles(weight: Value, outputs: int) -> Float[Tensor, " numbers"]:
    """Weights as the loops read them, ``[tiles of outputs, inputs, taps, outputs of a tile]``, once a step."""

    def packed() -> Tensor:
        base: Tensor = weight.base
        padded: Tensor = F.pad(base.flatten(2), (0, 0, 0, 0, 0, -len(base) % outputs))
        return padded.view(-1, outputs, *padded.shape[1:]).permute(0, 2, 3, 1).flatten()

    flat: Tensor = weight.remember(f"in tiles of {outputs}", packed)
    return flat
