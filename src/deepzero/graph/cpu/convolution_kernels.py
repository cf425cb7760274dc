"""Convolutions of float32 and float64 tensors on a CPU, with what follows them: kernels of samples side by side.

Differences come and go with their samples last in memory, ``[P, C, H, W, B]``; what lies otherwise is copied once.

Legend: p perturbations, b samples, c input and o output channels, h height, w width; places: h w; blocks of samples as
wide as a vector (:mod:`deepzero.graph.cpu.convolution_loops`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.differences import Channel, Dense, Difference, OneHot
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry

SCRATCH = 512 << 10
"""Bytes of what all blocks of a perturbation take, up to which they are convolved together."""


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


def samples_last(stacked: Float[Tensor, "p b *rest"]) -> Float[Tensor, "p *rest b"]:
    """Samples last, in contiguous memory, without a copy where the memory is so already."""
    return stacked.movedim(1, -1).contiguous()


def planes(value: Value) -> Float[Tensor, "c *rest b"]:
    """A base value ``[b, c, *rest]`` with samples last, contiguous, once a step."""
    rows: Tensor = value.remember("samples_last", lambda: value.base.movedim(0, -1).contiguous())
    return rows


class Split(NamedTuple):
    """Samples in blocks: the first sample of each, and how many of its lanes the one before has already."""

    firsts: Int64[Tensor, " blocks"]
    skips: Int64[Tensor, " blocks"]
    lanes: int

    @classmethod
    def of(cls, batch: int, dtype: torch.dtype) -> Split:
        """Blocks one behind the other; the last one ends with the last sample."""
        lanes = vectors().BYTES // dtype.itemsize
        plain = torch.arange(-(-batch // lanes)) * lanes
        firsts = plain.clamp(max=batch - lanes)
        return cls(firsts, plain - firsts, lanes)

    def blocks(self, base: Float[Tensor, "b *rest"]) -> Float[Tensor, "blocks *rest lanes"]:
        """Base values in blocks."""
        samples = self.firsts.unsqueeze(1) + torch.arange(self.lanes)
        return base[samples.flatten()].unflatten(0, samples.shape).movedim(1, -1).contiguous()

    def remembered(self, value: Value) -> Float[Tensor, " numbers"]:
        """A base value in blocks, flat, once a step."""
        flat: Tensor = value.remember("blocks", lambda: self.blocks(value.base).flatten())
        return flat


def takes(geometry: ConvolutionGeometry, weight: Tensor, size: torch.Size) -> bool:
    """True if the loops take a convolution of images of ``size``: in one group, of enough samples to fill a vector."""
    plain = geometry.ndim == 2 and geometry.groups == 1 and weight.device.type == "cpu"
    known = weight.dtype in (torch.float32, torch.float64) and size.numel() > 0
    return plain and known and size[0] >= vectors().BYTES // weight.dtype.itemsize


class Laid(NamedTuple):
    """A convolution laid out for the loops.

    Attributes:
        split: blocks of samples.
        blocks: the record of the loops.
        scratch: numbers of the padded blocks that are convolved together.
        weights: ``[inputs, terms of one channel, width]``, flat.
    """

    split: Split
    blocks: Any
    scratch: int
    weights: Float[Tensor, " numbers"]

    @property
    def buffer(self) -> int:
        """Numbers of the convolution of these blocks."""
        return int(self.blocks.width * self.blocks.starts.size * self.split.lanes)


def laid_out(
    weight: Value, geometry: ConvolutionGeometry, channels: int, size: Sequence[int], shape: torch.Size
) -> Laid:
    """The layout for images of ``channels`` channels (all of the weight's, or one), once a step."""
    key = f"laid out {channels} {tuple(size)} {geometry.stride} {geometry.pads} {geometry.dilation}"
    laid: Laid = weight.remember(key, lambda: _laid_out(weight, geometry, channels, size, shape))
    return laid


def _laid_out(
    weight: Value, geometry: ConvolutionGeometry, channels: int, size: Sequence[int], shape: torch.Size
) -> Laid:
    batch, outputs, *spatial = shape
    split, tile = Split.of(batch, weight.base.dtype), vectors()
    width = -(-outputs // tile.OUTPUTS) * tile.OUTPUTS
    padded = [n + low + high for n, (low, high) in zip(size, geometry.pads, strict=True)]
    image, places, count = channels * math.prod(padded), math.prod(spatial), len(split.firsts)
    whole = (image + width * places) * count * split.lanes * weight.base.itemsize
    together = count if whole <= SCRATCH else 1
    starts = _starts(geometry, padded, spatial)
    starts = (torch.arange(together).unsqueeze(1) * image + starts).flatten()
    starts = F.pad(starts, (0, -len(starts) % tile.PLACES))
    taps = (torch.arange(channels).unsqueeze(1) * math.prod(padded) + _taps(geometry, padded)).flatten()
    blocks = loops().Blocks(
        split.firsts.numpy(),
        split.skips.numpy(),
        together,
        (channels, *size, batch),
        (*geometry.pads[0], *geometry.pads[1]),
        places,
        outputs,
        width,
        (starts * split.lanes).numpy(),
        (taps * split.lanes).numpy(),
    )
    return Laid(split, blocks, together * image * split.lanes, _padded_weights(weight, width))


def _starts(geometry: ConvolutionGeometry, padded: Sequence[int], spatial: Sequence[int]) -> Int64[Tensor, " places"]:
    """Where the window of each place begins in a padded image."""
    rows, columns = (torch.arange(n) * s for n, s in zip(spatial, geometry.stride, strict=True))
    return (rows.unsqueeze(1) * padded[1] + columns).flatten()


def _taps(geometry: ConvolutionGeometry, padded: Sequence[int]) -> Int64[Tensor, " taps"]:
    """How far from there the entries of the window lie."""
    rows, columns = (torch.arange(n) * d for n, d in zip(geometry.kernel, geometry.dilation, strict=True))
    return (rows.unsqueeze(1) * padded[1] + columns).flatten()


def _padded_weights(weight: Value, width: int) -> Float[Tensor, " numbers"]:
    def padded() -> Tensor:
        base: Tensor = weight.base
        return F.pad(base.permute(1, 2, 3, 0), (0, width - len(base))).contiguous().flatten()

    flat: Tensor = weight.remember("by_channel", padded)
    return flat


class _Stack(NamedTuple):
    """Differences that enter a convolution, as the loops take them: all channels, or one each."""

    laid: Laid
    x: Float[Tensor, " numbers"]
    corners: Int64[Tensor, " p"]
    shape: torch.Size

    @classmethod
    def of(
        cls, difference: Channel | Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
    ) -> _Stack:
        size, x, channel = difference.shape[2:], samples_last(difference.delta).flatten(), isinstance(difference, Channel)
        laid = laid_out(weight, geometry, 1 if channel else difference.shape[1], size, shape)
        corners = torch.zeros(difference.count, dtype=torch.int64)
        if isinstance(difference, Channel):
            corners = difference.channels.contiguous() * (math.prod(geometry.kernel) * laid.blocks.width)
        return cls(laid, x, corners, shape)

    def scratch(self) -> list[Any]:
        """Memory for the padded blocks, and for their convolution."""
        return [self.x.new_zeros(self.laid.scratch).numpy(), self.x.new_empty(self.laid.buffer).numpy()]

    def convolved(self, *, centred: Value | None, keep: bool) -> tuple[Float64[Tensor, "p 3 o"], Tensor]:
        """The sums of ``d, c d, d^2``, if c is given, and the convolution, ``[p, o, h, w, b]``, if it is kept."""
        batch, outputs, *spatial = self.shape
        count = len(self.corners)
        sums = torch.zeros(0 if centred is None else count * outputs * 3, dtype=torch.float64)
        out = self.x.new_empty(count * outputs * math.prod(spatial) * batch if keep else 0)
        base = self.x.new_empty(0) if centred is None else self.laid.split.remembered(centred)
        scratch, buffer = self.scratch()
        loops().convolve(
            self.x.numpy(),
            self.laid.blocks,
            scratch,
            self.laid.weights.numpy(),
            self.corners.numpy(),
            buffer,
            base.numpy(),
            sums.numpy(),
            out.numpy(),
        )
        sums = sums.view(-1, outputs, 3).movedim(-1, 1)
        return sums, out.view(-1, outputs, *spatial, batch)

    def to_tail(self, tail: Any, behind: Sequence[int]) -> Float[Tensor, "p o h_out w_out b"]:
        """The convolution and what follows it."""
        batch, outputs = self.shape[:2]
        out = self.x.new_empty(len(self.corners), outputs, *behind, batch)
        scratch, buffer = self.scratch()
        loops().convolve_to_tail(
            self.x.numpy(),
            self.laid.blocks,
            scratch,
            self.laid.weights.numpy(),
            self.corners.numpy(),
            buffer,
            tail,
            out.flatten().numpy(),
        )
        return out


def coefficients(
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
    return _convolved(difference, weight, geometry, shape)


def convolve_dense(
    difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
) -> Dense | None:
    """The convolution of all channels, where their samples lie side by side."""
    if difference.delta.dim() == 5 and not difference.delta.movedim(1, -1).is_contiguous():
        return None
    return _convolved(difference, weight, geometry, shape)


def _convolved(
    difference: Channel | Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
) -> Dense | None:
    if not takes(geometry, weight.base, shape) or difference.delta.dtype != weight.base.dtype:
        return None
    _, out = _Stack.of(difference, weight, geometry, shape).convolved(centred=None, keep=True)
    return Dense(out.movedim(-1, 1))


def convolve_to_tail(
    difference: Channel | Dense,
    weight: Value,
    geometry: ConvolutionGeometry,
    shape: torch.Size,
    tail: Tail,
    extra: Difference | None,
) -> Dense | None:
    """One channel each is convolved twice, for the sums and for what follows; all channels are kept in between.

    To convolve nine numbers again takes a fifth of the time of writing the result and reading it.
    """
    if not takes(geometry, weight.base, shape) or difference.delta.dtype != weight.base.dtype:
        return None
    stack = _Stack.of(difference, weight, geometry, shape)
    again = isinstance(difference, Channel) and extra is None
    sums, out = stack.convolved(centred=tail.centred, keep=not again)
    parts = coefficients(sums, shape.numel() // shape[1], tail.scale, tail.gamma, residue(tail.centred))
    if extra is None and (again or tail.pooled is not None):
        record, behind = _block_tail(tail, stack.laid.split, shape, parts, weight.base.dtype)
        if again:
            return Dense(stack.to_tail(record, behind).movedim(-1, 1))
        reduced = out.new_empty(difference.count, shape[1], *behind, shape[0])
        blocks = stack.laid.blocks
        loops().planes_to_tail(out.flatten().numpy(), difference.count, blocks, record, reduced.flatten().numpy())
        return Dense(reduced.movedim(-1, 1))
    _relu_in_place(out, tail, parts, extra)
    return Dense(out.movedim(-1, 1))


def residue(centred: Value) -> Float64[Tensor, " c"]:
    """The mean of centred values, which is 0 but for rounding, once a step."""
    mean: Tensor = centred.remember(
        "residue", lambda: centred.base.mean([d for d in range(centred.base.dim()) if d != 1], dtype=torch.float64)
    )
    return mean


def _block_tail(
    tail: Tail, split: Split, shape: torch.Size, parts: Sequence[Float64[Tensor, "p o"]], dtype: torch.dtype
) -> tuple[Any, tuple[int, ...]]:
    """The record of the loops, and height and width behind."""
    spatial = tuple(shape[2:])
    behind, maxima, window = spatial, parts[0].new_empty(0, dtype=dtype), (1,) * 8
    if tail.pooled is not None and tail.window is not None:
        behind, maxima = tuple(tail.pooled.base.shape[2:]), split.remembered(tail.pooled)
        w = tail.window
        window = (*w.kernel, *w.stride, *w.padding, *w.dilation)  # type: ignore[assignment]
    record = loops().BlockTail(
        split.remembered(tail.centred).numpy(),
        split.remembered(tail.before).numpy(),
        maxima.numpy(),
        (*spatial, *behind),
        window,
        *(part.to(dtype).contiguous().numpy() for part in parts),
    )
    return record, behind


def _relu_in_place(
    out: Float[Tensor, "p o h w b"], tail: Tail, parts: Sequence[Float64[Tensor, "p o"]], extra: Difference | None
) -> None:
    count, outputs = out.shape[:2]
    rows, more = torch.full((count, outputs), -1), out.new_empty(0, 1)
    if isinstance(extra, Channel) and extra.axis == 1:
        more = samples_last(extra.delta).view(count, -1)
        rows[torch.arange(count), extra.channels] = torch.arange(count)
    elif extra is not None:
        more = samples_last(extra.dense()).view(count * outputs, -1)
        rows = torch.arange(count * outputs).view(count, outputs)
    base, before = planes(tail.centred).view(outputs, -1), planes(tail.before).view(outputs, -1)
    loops().relu_planes(
        out.view(count, outputs, -1).numpy(),
        more.numpy(),
        rows.numpy(),
        base.numpy(),
        before.numpy(),
        *(part.to(out.dtype).contiguous().numpy() for part in parts),
    )


def slices_to_tail(
    x: Value, difference: OneHot, geometry: ConvolutionGeometry, shape: torch.Size, tail: Tail
) -> Channel | None:
    """The slice of the padded input that each weight multiplies goes through the cache twice, and nowhere else."""
    size = x.base.shape[2:]
    if not takes(geometry, x.base, shape) or difference.values.dtype != x.base.dtype:
        return None
    split = Split.of(shape[0], x.base.dtype)
    padded: Tensor = x.remember(f"padded blocks{geometry.pads}", lambda: split.blocks(geometry.pad(x.base)))
    apart, width = padded[0].numel(), padded.shape[3]
    outputs, inputs, *taps = (index.contiguous() for index in difference.positions())
    entry = sum(t * d * n for t, d, n in zip(taps, geometry.dilation, (width, 1), strict=True))
    offsets = (inputs * (padded.shape[2] * width) + entry) * split.lanes
    starts = _starts(geometry, padded.shape[2:4], shape[2:]) * split.lanes
    empty = torch.empty(0, dtype=torch.int64).numpy()
    blocks = loops().Blocks(
        split.firsts.numpy(),
        split.skips.numpy(),
        1,
        (x.base.shape[1], *size, shape[0]),
        (0, 0, 0, 0),
        len(starts),
        shape[1],
        shape[1],
        starts.numpy(),
        empty,
    )
    buffer = x.base.new_empty(len(starts) * split.lanes).numpy()
    slices = padded.flatten().numpy(), apart, offsets.numpy(), difference.values.contiguous().numpy(), outputs.numpy(), blocks
    sums = torch.zeros(difference.count, 3, dtype=torch.float64)
    loops().sum_slices(*slices, buffer, split.remembered(tail.centred).numpy(), sums.flatten().numpy())
    gamma = None if tail.gamma is None else tail.gamma[outputs]
    parts = coefficients(
        sums, shape.numel() // shape[1], tail.scale[outputs], gamma, residue(tail.centred)[outputs]
    )
    record, behind = _block_tail(tail, split, shape, [part.unsqueeze(1) for part in parts], x.base.dtype)
    out = x.base.new_empty(difference.count, *behind, shape[0])
    loops().slices_to_tail(*slices, buffer, record, out.flatten().numpy())
    channel_shape = tail.pooled.base.shape if tail.pooled is not None else shape
    return Channel(1, outputs, out.movedim(-1, 1), channel_shape)
