"""Convolutions of float32 and float64 tensors on a CPU, with what follows them: kernels of samples side by side.

Differences of all channels come and go as :class:`~deepzero.graph.differences.Blocks`, those of one channel with their
samples last in memory, ``[p, h, w, b]``; what lies otherwise is copied once.

Legend: p perturbations, b samples, c input and o output channels, h height, w width; places: h w; blocks of samples as
wide as a vector, lanes its numbers (:mod:`deepzero.graph.cpu.convolution_loops`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.grad import conv2d_weight

from deepzero.graph.calls import Value
from deepzero.graph.cpu import winograd_kernels
from deepzero.graph.cpu.convolution_layouts import (
    BandLayout,
    ConvolutionSizes,
    Split,
    in_tiles,
    layout_of,
    loops,
    rows_of_a_band,
    vectors,
)
from deepzero.graph.cpu.winograd_kernels import SquareLayout, in_squares, square_layout
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, OneHot, Pending
from deepzero.graph.tails import REMAINS, Tail
from deepzero.graph.windows import ConvolutionGeometry

NEAR = 4 << 10
"""Bytes of a slice that are made at a time: with as many base values twice they stay in a core's nearest cache."""
PLAIN = (1,) * 8
SMALL = 64 << 10
"""Bytes of a slice of all samples up to which it is gone through for its sums: making a table takes longer."""
SUMMED = 1024
"""Places whose products PyTorch may add up in the data's dtype: its error grows with their number."""


def takes(geometry: ConvolutionGeometry, weight: Tensor, size: torch.Size) -> bool:
    """True if the loops take a convolution to ``size``: in one group, of enough samples to fill a vector."""
    return geometry.ndim == 2 and geometry.groups == 1 and weight.numel() > 0 and _fills(weight, size)


def _fills(like: Tensor, size: torch.Size) -> bool:
    """True if the loops know the numbers of a tensor, and samples of ``size`` fill a vector of them."""
    known = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64) and size.numel() > 0
    return known and size[0] >= vectors().BYTES // like.dtype.itemsize


def _rows_at_a_time(tail: Tail | None) -> int | None:
    """Rows whose maxima need no others; None if all of them do."""
    if tail is None or tail.window is None:
        return 1
    window = tail.window
    plain = window.stride == window.kernel and window.padding == (0, 0) and window.dilation == (1, 1)
    return window.kernel[0] if plain else None


class _Stack(NamedTuple):
    """Differences that enter a convolution, as the loops take them."""

    layout: BandLayout
    squares: SquareLayout | None
    split: Split
    weights: Float[Tensor, " numbers"]
    x: Float[Tensor, " numbers"]
    corners: Int64[Tensor, " p"]
    shape: torch.Size

    @classmethod
    def of(
        cls,
        difference: Channel | Dense | Blocks,
        weight: Value,
        geometry: ConvolutionGeometry,
        shape: torch.Size,
        tail: Tail | None,
        *,
        in_order: bool = False,
    ) -> _Stack:
        """All channels, in blocks, or one channel each, with samples last, as what leaves is ``in_order``."""
        one, batch, dtype = isinstance(difference, Channel), shape[0], weight.base.dtype
        channels, height, width = difference.shape[1:]
        sizes = ConvolutionSizes.of(geometry, (1 if one else channels, height, width), shape)
        step = _rows_at_a_time(tail) if one else 1
        layout = layout_of(sizes, batch, shape[1], step, dtype, samples_last=one, in_order=in_order)
        squares = None if one else square_layout(sizes, batch, shape[1], dtype)
        weights = in_tiles(weight, layout.tile) if squares is None else in_squares(weight, squares.tile)
        split = Split.of(batch, dtype)
        corners = torch.zeros(difference.count, dtype=torch.int64)
        if isinstance(difference, Channel):
            x = difference.delta.movedim(1, -1).contiguous()
            corners = difference.channels.contiguous() * (math.prod(geometry.kernel) * layout.tile)
        elif isinstance(difference, Blocks):
            x = difference.blocks
        else:
            x = split.stacked(difference.delta)
        return cls(layout, squares, split, weights, x.flatten(), corners, shape)

    @property
    def at_once(self) -> bool:
        """True if all images of a perturbation are convolved together, and not by squares."""
        bands = self.layout.bands
        whole = bands.rows == bands.spatial[0] and bands.together == len(self.split.firsts)
        return bool(whole and self.squares is None)

    def out(self, spatial: Sequence[int]) -> Float[Tensor, "p n o h w lane"]:
        """Memory for a result."""
        return self.x.new_empty(len(self.corners), len(self.split.firsts), self.shape[1], *spatial, self.split.lanes)

    def run(
        self, centred: Tensor | None, sums: Tensor | None, tail: Any, out: Tensor | None, last: _Stack | None = None
    ) -> None:
        """The convolution, to ``out``, or its sums, or both; or what follows it, to the ``last`` layer."""
        none = self.x.new_empty(0)
        if self.squares is not None:
            assert out is not None
            self._run_by_squares(self.squares, none if centred is None else centred, sums, out)
            return
        loops().convolve(
            self.x.numpy(),
            self.layout.bands,
            self.x.new_empty(self.layout.scratch).numpy(),
            self.weights.numpy(),
            self.corners.numpy(),
            self.x.new_empty(self.layout.buffer).numpy(),
            (none if centred is None else centred).numpy(),
            torch.empty(0, dtype=torch.float64).numpy() if sums is None else sums.flatten().numpy(),
            tail,
            self._no_matrix() if last is None else last.matrix(),
            (none if out is None else out.flatten()).numpy(),
        )

    def matrix(self) -> Any:
        """The loops' record of a last layer, which takes one perturbation at a time."""
        numbers = (self.weights, self.x, self.x.new_empty(self.layout.buffer))
        return loops().Matrix(self.layout.bands, *(n.numpy() for n in numbers))

    def _no_matrix(self) -> Any:
        return loops().Matrix(self.layout.bands, *[self.x.new_empty(0).numpy()] * 3)

    def _run_by_squares(self, layout: SquareLayout, centred: Tensor, sums: Tensor | None, out: Tensor) -> None:
        winograd_kernels.loops().convolve_by_squares(
            self.x.numpy(),
            len(self.corners),
            layout.squares,
            self.x.new_empty(layout.padded).numpy(),
            self.x.new_empty(layout.spectrum).numpy(),
            self.weights.numpy(),
            self.x.new_empty(layout.products).numpy(),
            centred.numpy(),
            torch.empty(0, dtype=torch.float64).numpy() if sums is None else sums.flatten().numpy(),
            out.flatten().numpy(),
        )

    def without_tail(self) -> Any:
        """The record of a tail that says there is none."""
        none, nothing = self.x.new_empty(0).numpy(), self.x.new_empty(0, 0).numpy()
        return loops().BandTail(
            none, none, none, self.layout.bands.spatial, PLAIN, nothing, nothing, nothing, none, none, none
        )


def coefficients_of(
    sums: Float64[Tensor, "p 3 *o"],
    rows: int,
    scale: Float[Tensor, " width"],
    gamma: Float[Tensor, " width"] | None,
    residue: Float64[Tensor, " width"],
) -> tuple[Float64[Tensor, " p *o"], Float64[Tensor, " p *o"], Float64[Tensor, " p *o"]]:
    """Slope, tilt and shift of ``v = slope d + tilt c + shift`` from the sums of ``d, c d, d^2`` over ``rows`` rows.

    With the mean change ``dv`` of the variance, ``s' = sqrt(s^2 + dv)``: slope ``1 / s'``, tilt ``1/s' - 1/s``, shift
    ``-slope mean(d)``, times gamma. ``residue`` is the mean of c, which is 0 but for rounding. All are NaN where less
    than :data:`~deepzero.graph.tails.REMAINS` of ``s^2`` remains.
    """
    mean, cross, square = (sums / rows).unbind(1)
    dv = 2 * (cross - mean * residue) + (square - mean * mean)
    scale = scale.double()
    old = scale * scale
    new = old + dv
    new_scale = new.masked_fill_(new < REMAINS * old, math.nan).sqrt()
    slope = 1 / new_scale
    tilt = -dv / (scale * new_scale * (scale + new_scale))
    if gamma is not None:
        slope, tilt = slope * gamma.double(), tilt * gamma.double()
    return slope, tilt, -slope * mean


def convolve_channel(
    difference: Channel, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
) -> Dense | None:
    """The convolution of one channel each."""
    if not takes(geometry, weight.base, shape) or difference.delta.dtype != weight.base.dtype:
        return None
    return _in_order(_Stack.of(difference, weight, geometry, shape, None, in_order=True))


def _in_order(stack: _Stack) -> Dense:
    """A convolution without a tail, samples last in memory."""
    batch, *rest = stack.shape
    out = stack.x.new_empty(len(stack.corners), *rest, batch)
    stack.run(None, None, stack.without_tail(), out)
    return Dense(out.movedim(-1, 1), owned=True)


def linear_of_blocks(difference: Blocks, weight: Value, shape: torch.Size) -> Dense | None:
    """``d W^T``: a convolution of images of a single place."""
    base = weight.base
    if isinstance(difference, Pending):
        if difference.source.dtype == base.dtype and base.numel():
            return Dense(difference.compute(weight), owned=True)
        difference = difference.settled()
    if not _fills(difference.blocks, shape) or difference.blocks.dtype != base.dtype or base.numel() == 0:
        return None
    return _in_order(_layer(difference.blocks, weight, shape)).rearranged(lambda delta: delta[..., 0, 0])


def _layer(blocks: Float[Tensor, "p n k lane"], weight: Value, shape: torch.Size) -> _Stack:
    """A linear layer of features in blocks, to an output of ``shape``."""
    filters = weight.remember("filters", lambda: Value(weight.base[:, :, None, None]))
    geometry = weight.remember("geometry of filters", lambda: ConvolutionGeometry(filters.base, 1, 0, 1, 1))
    images = Blocks(blocks[..., None, None, :], torch.Size((shape[0], blocks.shape[2], 1, 1)))
    return _Stack.of(images, filters, geometry, torch.Size((*shape, 1, 1)), None, in_order=True)


def convolve_dense(difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size) -> Dense | None:
    """The convolution of all channels, by squares; where those do not apply, PyTorch's is as fast."""
    if not takes(geometry, weight.base, shape) or difference.delta.dtype != weight.base.dtype:
        return None
    sizes = ConvolutionSizes.of(geometry, difference.shape[1:], shape)
    if square_layout(sizes, shape[0], shape[1], weight.base.dtype) is None:
        return None
    stack = _Stack.of(difference, weight, geometry, shape, None)
    out = stack.out(shape[2:])
    stack.run(None, None, stack.without_tail(), out)
    return Dense(Blocks(out, shape).dense())


def convolve_to_tail(
    difference: Channel | Dense | Blocks,
    weight: Value,
    geometry: ConvolutionGeometry,
    shape: torch.Size,
    tail: Tail,
    extra: Difference | Blocks | None,
) -> Blocks | None:
    """Small images go through all of it at once, one perturbation after the other.

    Of others, one channel each is convolved twice, for the sums and for what follows, which spares writing the result
    and reading it back; all channels are kept in between.
    """
    dtype = (difference.blocks if isinstance(difference, Blocks) else difference.delta).dtype
    if not takes(geometry, weight.base, shape) or dtype != weight.base.dtype:
        return None
    tail = replace(tail, averaged=False)
    stack = _Stack.of(difference, weight, geometry, shape, tail)
    behind = tail.behind(shape)
    if stack.at_once and extra is None:
        compute, source = partial(_at_once, stack, tail), stack.x.view(difference.count, -1)
        return Pending(source, compute, behind) if behind[2:] == (1, 1) else Blocks(compute(), behind)
    again = isinstance(difference, Channel) and extra is None
    out = None if again else stack.out(shape[2:])
    sums = torch.zeros(difference.count, shape[1], 3, dtype=torch.float64)
    stack.run(stack.split.remembered(tail.centred), sums, stack.without_tail(), out)
    rows = shape.numel() // shape[1]
    parts = coefficients_of(sums.movedim(-1, 1), rows, tail.scale, tail.gamma, residue(tail.centred))
    record = _record(tail, stack.split, shape, parts, dtype)
    if out is None:
        out = stack.out(behind[2:])
        stack.run(None, None, record, out)
    else:
        out = _followed(stack, out, record, behind, extra)
    return Blocks(out, behind)


def _at_once(stack: _Stack, tail: Tail, weight: Value | None = None) -> Float[Tensor, "p ..."]:
    """A convolution of small images and what follows it, in blocks; or what a linear layer makes of its one place."""
    shape, behind = stack.shape, tail.behind(stack.shape)
    record = _record(tail, stack.split, shape, None, stack.weights.dtype)
    sums, centred = torch.empty(shape[1], 3, dtype=torch.float64), stack.split.remembered(tail.centred)
    if weight is None:
        out = stack.out(behind[2:])
        stack.run(centred, sums, record, out)
        return out
    classes = len(weight.base)
    out = stack.x.new_empty(len(stack.corners), classes, shape[0])
    rows = stack.x.new_empty(1, len(stack.split.firsts), shape[1], stack.split.lanes)
    stack.run(centred, sums, record, out, _layer(rows, weight, torch.Size((shape[0], classes))))
    return out.movedim(-1, 1)


def _followed(
    stack: _Stack,
    convolved: Float[Tensor, "p n o h w lane"],
    record: Any,
    behind: torch.Size,
    extra: Difference | Blocks | None,
) -> Float[Tensor, "p n o h_out w_out lane"]:
    count, outputs, bands = len(stack.corners), stack.shape[1], stack.layout.bands
    rows, more = _residual(stack, extra)
    out = stack.out(behind[2:]) if record.maxima.size else convolved
    whole = bands._replace(rows=bands.spatial[0])
    loops().follow(
        convolved.flatten().numpy(), count, whole, record, more.flatten().numpy(), rows.numpy(), out.flatten().numpy()
    )
    assert rows.shape == (count, outputs + 1)
    return out


def _residual(stack: _Stack, extra: Difference | Blocks | None) -> tuple[Int64[Tensor, "p o_and_1"], Tensor]:
    """The start of the residual of each channel, the distance of its blocks, and its numbers."""
    count, outputs, split = len(stack.corners), stack.shape[1], stack.split
    length = math.prod(stack.shape[2:]) * split.lanes
    every, blocks = torch.arange(count), len(split.firsts)
    rows = torch.full((count, outputs + 1), -1)
    if extra is None:
        return rows, stack.x.new_empty(0)
    if isinstance(extra, Channel) and extra.axis == 1:
        rows[every, extra.channels] = every * (blocks * length)
        rows[:, outputs] = length
        return rows, split.stacked(extra.delta)
    rows[:, :outputs] = (every.unsqueeze(1) * (blocks * outputs) + torch.arange(outputs)) * length
    rows[:, outputs] = outputs * length
    return rows, extra.blocks if isinstance(extra, Blocks) else split.stacked(extra.dense())


def residue(centred: Value) -> Float64[Tensor, " c"]:
    """The mean of centred values, which is 0 but for rounding, once a step."""
    mean: Tensor = centred.remember(
        "residue", lambda: centred.base.mean([d for d in range(centred.base.dim()) if d != 1], dtype=torch.float64)
    )
    return mean


def _record(
    tail: Tail,
    split: Split,
    shape: torch.Size,
    parts: Sequence[Float64[Tensor, "p some"]] | None,
    dtype: torch.dtype,
) -> Any:
    """The loops' record of a tail; without parts, of one that finds them itself."""
    behind, maxima, window = tuple(shape[2:]), torch.empty(0, dtype=dtype), PLAIN
    if tail.pooled is not None and tail.window is not None:
        w = tail.window
        behind, maxima = tuple(tail.pooled.base.shape[2:]), split.remembered(tail.pooled)
        window = (*w.kernel, *w.stride, *w.padding, *w.dilation)
    places = math.prod(behind) if tail.averaged else 0
    norm = torch.empty(0, dtype=dtype) if parts else tail.centred.remember("norm", lambda: _norm(tail, dtype))
    found = parts or torch.empty(3, 1, shape[1], dtype=dtype)
    return loops().BandTail(
        split.remembered(tail.centred).numpy(),
        split.remembered(tail.before).numpy(),
        maxima.numpy(),
        behind,
        window,
        *(part.to(dtype).contiguous().numpy() for part in found),
        norm.numpy(),
        torch.empty(places * split.lanes, dtype=dtype).numpy(),
        torch.tensor([1 / places] if places else [], dtype=dtype).numpy(),
    )


def _norm(tail: Tail, dtype: torch.dtype) -> Float[Tensor, " numbers"]:
    """Scale, factor and mean of the centred values of each channel."""
    gamma = torch.ones_like(tail.scale) if tail.gamma is None else tail.gamma
    return torch.stack([part.to(dtype) for part in (tail.scale, gamma, residue(tail.centred))], 1).flatten()


def slices_to_tail(
    x: Value, difference: OneHot, geometry: ConvolutionGeometry, shape: torch.Size, tail: Tail
) -> Channel | None:
    """The slice of the padded input that each weight multiplies goes through the cache, and nowhere else.

    Batch norm takes sums of it first: a small slice is gone through for them, those of others are from a table that is
    made for all weights at once, :class:`SliceSums`.
    """
    if not takes(geometry, x.base, shape) or difference.values.dtype != x.base.dtype:
        return None
    split = Split.of(shape[0], x.base.dtype)
    padded: Tensor = x.remember(f"padded blocks{geometry.pads}", lambda: split.blocks(geometry.pad(x.base)))
    sizes = ConvolutionSizes.of(geometry, x.base.shape[1:], shape)
    outputs, inputs, *taps = (index.contiguous() for index in difference.positions())
    entries = [t * d * n for t, d, n in zip(taps, geometry.dilation, (sizes.across, 1), strict=True)]
    slices = _Slices(padded, inputs * math.prod(padded.shape[2:4]) + sum(entries), difference.values, outputs)
    rows = shape.numel() // shape[1]
    if rows * x.base.dtype.itemsize <= SMALL:
        return slices.followed(sizes, split, shape, tail, None)
    table, gamma = SliceSums.remembered(x, geometry, tail.centred), None if tail.gamma is None else tail.gamma[outputs]
    sums = table.of(difference.values, outputs, inputs, taps[0] * geometry.kernel[1] + taps[1])
    parts = coefficients_of(sums, rows, tail.scale[outputs], gamma, residue(tail.centred)[outputs])
    return slices.followed(sizes, split, shape, tail, parts)


def affine_to_tail(difference: OneHot, shape: torch.Size, tail: Tail, *, factor: bool) -> Channel | None:
    """One change a perturbation, of gamma or of what is added: ``v = change c / s``, or the change itself."""
    centred, values = tail.centred.base, difference.values
    if not _fills(centred, shape) or len(shape) != 4 or values.dtype != centred.dtype:
        return None
    split, (channels, height, width) = Split.of(shape[0], values.dtype), shape[1:]
    (outputs,) = (index.contiguous() for index in difference.positions())
    sizes = ConvolutionSizes((channels, height, width), (height, width), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    change, none = values.double(), torch.zeros(difference.count, dtype=torch.float64)
    parts = (change / tail.scale[outputs].double(), none, none) if factor else (none, none, change)
    blocks = split.remembered(tail.centred).view(-1, *shape[1:], split.lanes)
    slices = _Slices(blocks, outputs * (height * width), torch.ones_like(values), outputs)
    return slices.followed(sizes, split, shape, tail, parts)


class _Slices(NamedTuple):
    """Changes of one channel each, multiples of slices of images in blocks.

    Attributes:
        blocks: the images.
        starts: the first place of each slice in a block.
        factors: of the slices.
        channels: of what they are added to.
    """

    blocks: Float[Tensor, "n c h w lane"]
    starts: Int64[Tensor, " p"]
    factors: Float[Tensor, " p"]
    channels: Int64[Tensor, " p"]

    def followed(
        self,
        sizes: ConvolutionSizes,
        split: Split,
        shape: torch.Size,
        tail: Tail,
        parts: Sequence[Float64[Tensor, " p"]] | None,
    ) -> Channel:
        """The change behind them, with a slope, a tilt and a shift for each, or those that follow from their sums."""
        behind, small = tail.behind(shape), parts is None
        out = self.blocks.new_empty(len(self.channels), *behind[2:], shape[0])
        record = _record(tail, split, shape, parts and [part.unsqueeze(1) for part in parts], out.dtype)
        bands = _bands_of_slices(sizes, split, shape, None if small else _rows_at_a_time(tail))
        loops().slices(
            self.blocks.flatten().numpy(),
            self.blocks[0].numel(),
            (self.starts * split.lanes).numpy(),
            self.factors.contiguous().numpy(),
            self.channels.numpy(),
            bands,
            self.blocks.new_empty(bands.starts.size * split.lanes * (len(split.firsts) if small else 1)).numpy(),
            torch.empty(3, dtype=torch.float64).numpy(),
            record,
            shape[0],
            out.flatten().numpy(),
        )
        return Channel(1, self.channels, out.movedim(-1, 1), behind)


class SliceSums(NamedTuple):
    """Sums over samples and places of slices z of a convolution's padded input, for all of its weights.

    A weight of output o, input c and tap k multiplies the slice ``z_{c k}`` of input c that is shifted by k. Sums of
    changes ``d = v z``, of ``c_o d`` and of ``d^2`` follow from those of z, of ``c_o z`` and of ``z^2``: the second is
    what a weight's gradient would be if the centred values were that of the output, one operation for all weights.

    Attributes:
        plain: of z, ``[C, taps]``.
        cross: of ``c_o z``, ``[O, C, taps]``.
        square: of ``z^2``, ``[C, taps]``.
    """

    plain: Float64[Tensor, "c k"]
    cross: Float64[Tensor, "o c k"]
    square: Float64[Tensor, "c k"]

    @classmethod
    def remembered(cls, x: Value, geometry: ConvolutionGeometry, centred: Value) -> SliceSums:
        """Those of a step's base values, once a step."""
        found: SliceSums = centred.remember(
            f"sums of slices {geometry}", lambda: cls.made(x.base, geometry, centred.base)
        )
        return found

    @classmethod
    def made(
        cls, x: Float[Tensor, "b c h w"], geometry: ConvolutionGeometry, centred: Float[Tensor, "b o h_out w_out"]
    ) -> SliceSums:
        """Those of an input, and of centred values of the output.

        Products of a few samples are added up in the data's dtype, and their sums in float64.
        """
        padded, size = geometry.pad(x), (centred.shape[1], x.shape[1], *geometry.kernel)
        cross, few = torch.zeros(size, dtype=torch.float64), max(1, SUMMED // centred[0, 0].numel())
        for some, other in zip(torch.split(padded, few), torch.split(centred, few), strict=True):
            cross += conv2d_weight(some, size, other, geometry.stride, 0, geometry.dilation)  # type: ignore[no-untyped-call]
        sums = (padded.sum(0, dtype=torch.float64), padded.square().sum(0, dtype=torch.float64))
        plain, square = (cls._over_places(image, geometry, centred.shape[2:]) for image in sums)
        return cls(plain, cross.flatten(2), square)

    @staticmethod
    def _over_places(
        image: Float64[Tensor, "c h w"], geometry: ConvolutionGeometry, spatial: Sequence[int]
    ) -> Float64[Tensor, "c k"]:
        sums = []
        for start in itertools.product(
            *(range(0, k * d, d) for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
        ):
            rows, columns = (
                slice(begin, begin + (count - 1) * step + 1, step)
                for begin, count, step in zip(start, spatial, geometry.stride, strict=True)
            )
            sums.append(image[:, rows, columns].sum((1, 2)))
        return torch.stack(sums, 1)

    def of(
        self,
        values: Float[Tensor, " p"],
        outputs: Int64[Tensor, " p"],
        inputs: Int64[Tensor, " p"],
        tap: Int64[Tensor, " p"],
    ) -> Float64[Tensor, "p 3"]:
        """Sums of ``d, c d, d^2`` for changes of one weight each."""
        v = values.double()
        return torch.stack(
            [v * self.plain[inputs, tap], v * self.cross[outputs, inputs, tap], v * v * self.square[inputs, tap]], 1
        )


def _bands_of_slices(sizes: ConvolutionSizes, split: Split, shape: torch.Size, step: int | None) -> Any:
    """The loops' record for slices: bands of one channel, samples last in what they write; one without a step."""
    height, width = shape[2:]
    rows = rows_of_a_band(height, step, lambda rows: rows * width * vectors().BYTES <= NEAR)
    starts, none = (sizes.starts(rows) * split.lanes).numpy(), torch.arange(0).numpy()
    return loops().Bands(
        size=(1, 0, 0),
        image=0,
        origins=split.firsts.numpy(),
        apart=shape[0],
        skips=split.skips.numpy(),
        together=1,
        copied=False,
        rows=rows,
        stride=sizes.stride[0],
        top=0,
        left=0,
        padded=0,
        across=sizes.across,
        spatial=(shape[2], shape[3]),
        outputs=shape[1],
        width=shape[1],
        landings=none,
        beyond=(0, 0, 0),
        places=len(starts),
        other=False,
        tiles=none,
        starts=starts,
        ends=none,
        begins=none,
        stops=none,
        taps=none,
        filters=none,
    )
