"""Convolutions of float32 and float64 tensors on a CPU, with what follows them: kernels of samples side by side.

Differences of all channels come and go as :class:`~deepzero.graph.differences.Blocks`, those of one channel with their
samples last in memory, ``[p, h, w, b]``; what lies otherwise is copied once.

Legend: p perturbations, b samples, c input and o output channels, h height, w width; places: h w; blocks of samples as
wide as a vector, lanes its numbers (:mod:`deepzero.graph.cpu.convolution_loops`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, OneHot
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry

SCRATCH = 640 << 10
"""Bytes of what is convolved at a time: a part of a core's cache, of which base values and weights need their own."""
PLAIN = (1,) * 8


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
        index = self.firsts.unsqueeze(1) + torch.arange(self.lanes)
        return samples[index].movedim(1, -1).contiguous()

    def stacked(self, stacked: Float[Tensor, "p b *rest"]) -> Float[Tensor, "p n *rest lane"]:
        """The samples of each perturbation in blocks."""
        count, batch = len(self.firsts), stacked.shape[1]
        last = stacked[:, batch - self.lanes :].movedim(1, -1).unsqueeze(1)
        if count == 1:
            return last.contiguous()
        even = stacked[:, : (count - 1) * self.lanes].movedim(1, -1)
        whole = even.reshape(*even.shape[:-1], count - 1, self.lanes).movedim(-2, 1)
        return torch.cat([whole, last], 1)

    def remembered(self, value: Value) -> Float[Tensor, " numbers"]:
        """A base value in blocks, flat, once a step."""
        flat: Tensor = value.remember("blocks", lambda: self.blocks(value.base).flatten())
        return flat


def takes(geometry: ConvolutionGeometry, weight: Tensor, size: torch.Size) -> bool:
    """True if the loops take a convolution to ``size``: in one group, of enough samples to fill a vector."""
    plain = geometry.ndim == 2 and geometry.groups == 1 and weight.device.type == "cpu"
    known = weight.dtype in (torch.float32, torch.float64) and size.numel() > 0 and weight.numel() > 0
    return plain and known and size[0] >= vectors().BYTES // weight.dtype.itemsize


class Laid(NamedTuple):
    """A convolution laid out for the loops.

    Attributes:
        split: blocks of samples.
        bands: the record of the loops.
        scratch: numbers of the padded bands that are convolved together.
        weights: ``[inputs, taps, width]``, flat.
    """

    split: Split
    bands: Any
    scratch: int
    weights: Float[Tensor, " numbers"]

    @property
    def buffer(self) -> int:
        """Numbers of the convolution of these bands."""
        return int(self.bands.width * self.bands.starts.size * self.split.lanes)


def _laid_out(
    weight: Value,
    geometry: ConvolutionGeometry,
    size: tuple[int, int, int],
    shape: torch.Size,
    step: int | None,
    *,
    samples_last: bool,
) -> Laid:
    """The layout for images of ``size`` (channels, height, width) to ``shape``.

    A band has ``step`` rows, or a multiple, all of the same number; None is the whole image.
    """
    batch, outputs, height, wide = shape
    split, tile = Split.of(batch, weight.base.dtype), vectors()
    width = -(-outputs // tile.OUTPUTS) * tile.OUTPUTS
    across = size[2] + sum(geometry.pads[1])

    def padded_rows(rows: int) -> int:
        return (rows - 1) * geometry.stride[0] + (geometry.kernel[0] - 1) * geometry.dilation[0] + 1

    def taken(rows: int) -> int:
        numbers = size[0] * padded_rows(rows) * across + width * rows * wide
        return int(numbers * split.lanes * weight.base.itemsize)

    choices = [r for r in range(height, 0, -1) if step is not None and height % r == 0 and r % step == 0] or [height]
    rows = next((r for r in choices if taken(r) <= SCRATCH), choices[-1])
    together = len(split.firsts) if rows == height and taken(rows) * len(split.firsts) <= SCRATCH else 1
    padded = padded_rows(rows)
    image = size[0] * padded * across
    starts = (torch.arange(together).unsqueeze(1) * image + _starts(geometry, across, (rows, wide))).flatten()
    starts = F.pad(starts, (0, -len(starts) % tile.PLACES))
    taps = (torch.arange(size[0]).unsqueeze(1) * (padded * across) + _taps(geometry, across)).flatten()
    lanes = split.lanes
    origins = split.firsts if samples_last else torch.arange(len(split.firsts)) * (math.prod(size) * lanes)
    bands = loops().Bands(
        size,
        math.prod(size) * (batch if samples_last else len(split.firsts) * lanes),
        origins.numpy(),
        batch if samples_last else lanes,
        split.skips.numpy(),
        together,
        rows,
        geometry.stride[0],
        (geometry.pads[0][0], *geometry.pads[1]),
        padded,
        (height, wide),
        outputs,
        width,
        (starts * lanes).numpy(),
        (taps * lanes).numpy(),
    )
    return Laid(split, bands, together * image * lanes, _padded_weights(weight, width))


def _starts(geometry: ConvolutionGeometry, across: int, spatial: Sequence[int]) -> Int64[Tensor, " places"]:
    """The start of the window of each place in a padded image of rows of ``across``."""
    rows, columns = (torch.arange(n) * s for n, s in zip(spatial, geometry.stride, strict=True))
    return (rows.unsqueeze(1) * across + columns).flatten()


def _taps(geometry: ConvolutionGeometry, across: int) -> Int64[Tensor, " taps"]:
    """The distances of the entries of a window from its start."""
    rows, columns = (torch.arange(n) * d for n, d in zip(geometry.kernel, geometry.dilation, strict=True))
    return (rows.unsqueeze(1) * across + columns).flatten()


def _padded_weights(weight: Value, width: int) -> Float[Tensor, " numbers"]:
    def padded() -> Tensor:
        base: Tensor = weight.base
        return F.pad(base.permute(1, 2, 3, 0), (0, width - len(base))).contiguous().flatten()

    flat: Tensor = weight.remember("by_channel", padded)
    return flat


def _rows_at_a_time(tail: Tail | None) -> int | None:
    """Rows whose maxima need no others; None if all of them do."""
    if tail is None or tail.window is None:
        return 1
    window = tail.window
    plain = window.stride == window.kernel and window.padding == (0, 0) and window.dilation == (1, 1)
    return window.kernel[0] if plain else None


class _Stack(NamedTuple):
    """Differences that enter a convolution, as the loops take them."""

    laid: Laid
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
    ) -> _Stack:
        """All channels, in blocks, or one channel each, with samples last."""
        one, batch = isinstance(difference, Channel), shape[0]
        channels, height, width = difference.shape[1:]
        size = (1 if one else channels, height, width)
        step = _rows_at_a_time(tail) if one else 1
        key = f"laid out {size} {shape} {geometry.stride} {geometry.pads} {geometry.dilation} {step}"
        laid: Laid = weight.remember(key, lambda: _laid_out(weight, geometry, size, shape, step, samples_last=one))
        corners = torch.zeros(difference.count, dtype=torch.int64)
        if isinstance(difference, Channel):
            x = difference.delta.movedim(1, -1).contiguous()
            corners = difference.channels.contiguous() * (math.prod(geometry.kernel) * laid.bands.width)
        elif isinstance(difference, Blocks):
            x = difference.blocks
        else:
            x = Split.of(batch, weight.base.dtype).stacked(difference.delta)
        return cls(laid, x.flatten(), corners, shape)

    def out(self, spatial: Sequence[int]) -> Float[Tensor, "p n o h w lane"]:
        """Memory for a result."""
        return self.x.new_empty(
            len(self.corners), len(self.laid.split.firsts), self.shape[1], *spatial, self.laid.split.lanes
        )

    def run(self, centred: Tensor | None, sums: Tensor | None, tail: Any, out: Tensor | None) -> None:
        """The convolution, to ``out``, or its sums, or both; or what follows it."""
        none = self.x.new_empty(0)
        loops().convolve(
            self.x.numpy(),
            self.laid.bands,
            self.x.new_empty(self.laid.scratch).numpy(),
            self.laid.weights.numpy(),
            self.corners.numpy(),
            self.x.new_empty(self.laid.buffer).numpy(),
            (none if centred is None else centred).numpy(),
            torch.empty(0, dtype=torch.float64).numpy() if sums is None else sums.flatten().numpy(),
            tail,
            (none if out is None else out.flatten()).numpy(),
        )

    def without_tail(self) -> Any:
        """The record of a tail that says there is none."""
        none, nothing = self.x.new_empty(0).numpy(), self.x.new_empty(0, 0).numpy()
        return loops().BandTail(none, none, none, self.laid.bands.spatial, PLAIN, nothing, nothing, nothing)


def coefficients_of(
    sums: Float64[Tensor, "p 3 *o"],
    rows: int,
    scale: Float[Tensor, " width"],
    gamma: Float[Tensor, " width"] | None,
    residue: Float64[Tensor, " width"],
) -> tuple[Float64[Tensor, " p *o"], Float64[Tensor, " p *o"], Float64[Tensor, " p *o"]]:
    """Slope, tilt and shift of ``v = slope d + tilt c + shift`` from the sums of ``d, c d, d^2`` over ``rows`` rows.

    With the mean change ``dv`` of the variance, ``s' = sqrt(s^2 + dv)``: slope ``1 / s'``, tilt ``1/s' - 1/s``, shift
    ``-slope mean(d)``, times gamma. ``residue`` is the mean of c, which is 0 but for rounding.
    """
    mean, cross, square = (sums / rows).unbind(1)
    dv = 2 * (cross - mean * residue) + (square - mean * mean)
    scale = scale.double()
    new_scale = (scale * scale + dv).sqrt()
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
    stack = _Stack.of(difference, weight, geometry, shape, None)
    out = stack.out(shape[2:])
    stack.run(None, None, stack.without_tail(), out)
    return Dense(Blocks(out, shape).dense())


def convolve_dense(difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size) -> None:
    """None: without what follows it, PyTorch's is as fast."""


def convolve_to_tail(
    difference: Channel | Dense | Blocks,
    weight: Value,
    geometry: ConvolutionGeometry,
    shape: torch.Size,
    tail: Tail,
    extra: Difference | Blocks | None,
) -> Blocks | None:
    """One channel each is convolved twice, for the sums and for what follows; all channels are kept in between.

    To convolve again spares writing the result and reading it back.
    """
    dtype = (difference.blocks if isinstance(difference, Blocks) else difference.delta).dtype
    if not takes(geometry, weight.base, shape) or dtype != weight.base.dtype:
        return None
    stack = _Stack.of(difference, weight, geometry, shape, tail)
    again = isinstance(difference, Channel) and extra is None
    out = None if again else stack.out(shape[2:])
    sums = torch.zeros(difference.count, shape[1], 3, dtype=torch.float64)
    stack.run(stack.laid.split.remembered(tail.centred), sums, stack.without_tail(), out)
    rows = shape.numel() // shape[1]
    parts = coefficients_of(sums.movedim(-1, 1), rows, tail.scale, tail.gamma, residue(tail.centred))
    record = _record(tail, stack.laid.split, shape, parts, dtype)
    if out is None:
        out = stack.out(record.behind)
        stack.run(None, None, record, out)
    else:
        out = _followed(stack, out, record, extra)
    return Blocks(out, shape if tail.pooled is None else tail.pooled.base.shape)


def _followed(
    stack: _Stack, convolved: Float[Tensor, "p n o h w lane"], record: Any, extra: Difference | Blocks | None
) -> Float[Tensor, "p n o h_out w_out lane"]:
    count, outputs, bands = len(stack.corners), stack.shape[1], stack.laid.bands
    rows, more = _residual(stack, extra)
    out = stack.out(record.behind) if record.maxima.size else convolved
    whole = bands._replace(rows=bands.spatial[0])
    loops().follow(
        convolved.flatten().numpy(), count, whole, record, more.flatten().numpy(), rows.numpy(), out.flatten().numpy()
    )
    assert rows.shape == (count, outputs + 1)
    return out


def _residual(stack: _Stack, extra: Difference | Blocks | None) -> tuple[Int64[Tensor, "p o_and_1"], Tensor]:
    """The start of the residual of each channel, the distance of its blocks, and its numbers."""
    count, outputs, split = len(stack.corners), stack.shape[1], stack.laid.split
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
    parts: Sequence[Float64[Tensor, "p some"]],
    dtype: torch.dtype,
) -> Any:
    """The loops' record of a tail; without parts, of one whose sums are to be found first."""
    behind, maxima, window = tuple(shape[2:]), torch.empty(0, dtype=dtype), PLAIN
    if tail.pooled is not None and tail.window is not None:
        w = tail.window
        behind, maxima = tuple(tail.pooled.base.shape[2:]), split.remembered(tail.pooled)
        window = (*w.kernel, *w.stride, *w.padding, *w.dilation)
    return loops().BandTail(
        split.remembered(tail.centred).numpy(),
        split.remembered(tail.before).numpy(),
        maxima.numpy(),
        behind,
        window,
        *(part.to(dtype).contiguous().numpy() for part in parts or [torch.empty(0, 0)] * 3),
    )


def slices_to_tail(
    x: Value, difference: OneHot, geometry: ConvolutionGeometry, shape: torch.Size, tail: Tail
) -> Channel | None:
    """The slice of the padded input that each weight multiplies goes through the cache twice, and nowhere else."""
    if not takes(geometry, x.base, shape) or difference.values.dtype != x.base.dtype:
        return None
    split = Split.of(shape[0], x.base.dtype)
    padded: Tensor = x.remember(f"padded blocks{geometry.pads}", lambda: split.blocks(geometry.pad(x.base)))
    across = padded.shape[3]
    outputs, inputs, *taps = (index.contiguous() for index in difference.positions())
    entries = [t * d * n for t, d, n in zip(taps, geometry.dilation, (across, 1), strict=True)]
    offsets = (inputs * (padded.shape[2] * across) + sum(entries)) * split.lanes
    bands = _bands_of_slices(geometry, split, across, shape)
    sums = torch.zeros(difference.count, 3, dtype=torch.float64)
    out = x.base.new_empty(difference.count, *(shape if tail.pooled is None else tail.pooled.base.shape)[2:], shape[0])

    def run(record: Any) -> None:
        loops().slices(
            padded.flatten().numpy(),
            padded[0].numel(),
            offsets.numpy(),
            difference.values.contiguous().numpy(),
            outputs.numpy(),
            bands,
            x.base.new_empty(bands.starts.size * split.lanes).numpy(),
            sums.flatten().numpy(),
            record,
            shape[0],
            out.flatten().numpy(),
        )

    run(_record(tail, split, shape, [], x.base.dtype))
    gamma = None if tail.gamma is None else tail.gamma[outputs]
    rows = shape.numel() // shape[1]
    parts = coefficients_of(sums, rows, tail.scale[outputs], gamma, residue(tail.centred)[outputs])
    run(_record(tail, split, shape, [part.unsqueeze(1) for part in parts], x.base.dtype))
    return Channel(1, outputs, out.movedim(-1, 1), shape if tail.pooled is None else tail.pooled.base.shape)


def _bands_of_slices(geometry: ConvolutionGeometry, split: Split, across: int, shape: torch.Size) -> Any:
    """The loops' record for slices: whole images of one channel, samples last in what they write."""
    starts = _starts(geometry, across, shape[2:]) * split.lanes
    return loops().Bands(
        size=(1, 0, 0),
        image=0,
        origins=split.firsts.numpy(),
        apart=shape[0],
        skips=split.skips.numpy(),
        together=1,
        rows=shape[2],
        stride=1,
        pads=(0, 0, 0),
        padded=0,
        spatial=(shape[2], shape[3]),
        outputs=shape[1],
        width=shape[1],
        starts=starts.numpy(),
        taps=starts.numpy(),
    )
