"""Kernels for float32 tensors on an NVIDIA GPU: the functions of :class:`deepzero.graph.kernels.Kernels`.

Each returns None where it does not apply: without Triton, for other dtypes, more or fewer spatial dimensions. Dense
differences come out in float32, or as :class:`~deepzero.graph.differences.HalfDense` if the chunk's precision says so.

Legend: p perturbations, b samples, c channels, i input and o output channels, h height, w width; rest: positions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from deepzero.graph import precision
from deepzero.graph.calls import Value
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, HalfDense, channels_last
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry, Window

log = logging.getLogger("deepzero")

INDEXABLE = 1 << 31
"""Entries of one perturbation that 32-bit offsets reach."""
NARROW = 16
"""Channels up to which a product in TF32 is faster here than in cuDNN, whose tiles are made for more."""
TILE = 4096
"""Entries of a tile of the passes over memory, and twice as many of the sums."""
GROUP = 16
"""Perturbations for which a program keeps the base values of its tile."""
PIXELS = 128
"""Output pixels of a tile of a convolution."""
WIDEST = 64
"""Channels of a tile, at most."""
LINE = 128
"""Bytes of the input channels of a pixel that a product takes at a time: what shared memory holds side by side."""


@cache
def triton() -> Any:
    """Triton, or None where it is not installed: then rules compose PyTorch's operations."""
    try:
        import triton as found  # noqa: PLC0415 - slow to import, and needed on a GPU alone
    except ImportError:
        log.info("Triton is not installed: difference propagation on this GPU composes plain operations, much slower")
        return None
    return found


@cache
def convolutions() -> Any:
    """The programs of convolutions."""
    from deepzero.graph.cuda import triton_convolution  # noqa: PLC0415 - imports Triton

    return triton_convolution


@cache
def normalizations() -> Any:
    """The programs of batch norm and relu."""
    from deepzero.graph.cuda import triton_normalization  # noqa: PLC0415 - imports Triton

    return triton_normalization


@cache
def windows() -> Any:
    """The programs of slices and maxima."""
    from deepzero.graph.cuda import triton_windows  # noqa: PLC0415 - imports Triton

    return triton_windows


def applies(*tensors: Tensor) -> bool:
    """True if the programs take these tensors; on a CPU only where Triton interprets its programs."""
    if any(t.dtype is not torch.float32 for t in tensors) or triton() is None:
        return False
    return all(t.device.type == "cuda" or triton().knobs.runtime.interpret for t in tensors)


def stored(difference: Difference | Blocks) -> tuple[Shaped[Tensor, "p b *rest c"], float]:
    """The memory of a dense difference, channels last, and what its numbers are to be multiplied by."""
    if isinstance(difference, HalfDense):
        return channels_last(difference.half), 1 / difference.scale
    return channels_last(difference.dense()), 1.0


def empty(count: int, shape: Sequence[int], like: Tensor) -> tuple[Shaped[Tensor, " count *shape"], float]:
    """Memory for a dense difference, and what is to be multiplied to what it stores."""
    scale = precision.current().scale
    dtype = torch.float32 if scale is None else torch.float16
    return torch.empty(count, *shape, dtype=dtype, device=like.device), scale or 1.0


def finished(rows: Shaped[Tensor, "p b *rest c"], scale: float) -> Dense:
    """The difference whose memory has been filled."""
    stacked = rows.movedim(-1, 2)
    return Dense(stacked) if stacked.dtype is torch.float32 else HalfDense(stacked, scale)


# Batch norm -----------------------------------------------------------------------------------------------------------


def _made(
    partial: Float[Tensor, "p tiles 3 *c"],
    rows: int,
    channels: Int64[Tensor, " p"] | None,
    scale: Float[Tensor, " c"],
    gamma: Float[Tensor, " c"] | None,
    centred: Value,
) -> Float[Tensor, "p 3 width"]:
    """Slope, tilt and shift of each perturbation's channels, from the sums over tiles."""
    count, tiles = partial.shape[:2]
    width = partial.shape[3] if partial.dim() == 4 else 1
    residue = centred.remember("residue", lambda: _residue(centred))
    if gamma is None:
        gamma = centred.remember("ones", lambda: torch.ones_like(scale))
    made = torch.empty(count, 3, width, device=partial.device)
    block = min(16, triton().next_power_of_2(width))
    normalizations().coefficients[(count, triton().cdiv(width, block))](
        partial, partial if channels is None else channels, scale.contiguous(), gamma.contiguous(), residue, made, rows,
        width, tiles, OWN=channels is not None, BT=64, BATCHES=triton().cdiv(tiles, 64), BC=block,
    )  # fmt: skip
    return made


def _residue(centred: Value) -> Float64[Tensor, " c"]:
    """The means of centred values: 0 but for rounding."""
    base: Tensor = centred.base
    return base.mean([d for d in range(base.dim()) if d != 1], dtype=torch.float64)


def normalize_relu_channel(
    difference: Channel,
    centred: Value,
    scale: Float[Tensor, " c"],
    gamma: Float[Tensor, " c"] | None,
    before: Value,
) -> Float[Tensor, "p b *rest"] | None:
    """One pass for the sums, one for ``relu(before + v) - relu(before)`` with ``v = slope d + tilt c + shift``."""
    if not applies(difference.delta, before.base) or before.base.numel() >= INDEXABLE:
        return None
    delta, channels = difference.delta.contiguous(), difference.channels.contiguous()
    count, rows, block = difference.count, delta[0].numel(), TILE
    tiles = triton().cdiv(rows, block)
    base, pre = centred.channel_first(1), before.channel_first(1)
    partial = torch.empty(count, tiles, 3, device=delta.device)
    grid = (tiles, count)
    normalizations().channel_sums[grid](delta, base, channels, partial, rows, tiles, BLOCK=block)
    made = _made(partial, rows, channels, scale, gamma, centred)
    out = torch.empty_like(delta)
    normalizations().channel_relu[grid](delta, base, pre, channels, made, out, rows, BLOCK=block)
    return out


def normalize_relu_dense(
    difference: Difference,
    centred: Value,
    scale: Float[Tensor, " c"],
    gamma: Float[Tensor, " c"] | None,
    before: Value,
    extra: Difference | None,
    *,
    overwrite: bool,
) -> Dense | None:
    """The same over all channels, which lie side by side in memory; with ``overwrite``, in that of d."""
    if not applies(before.base, scale) or before.base.numel() >= INDEXABLE:
        return None
    source, unit = stored(difference)
    count, width = source.shape[0], source.shape[-1]
    rows, columns = source[0].numel() // width, min(WIDEST, triton().next_power_of_2(width))
    block = max(1, 2 * TILE // columns)
    tiles = triton().cdiv(rows, block)
    partial = torch.empty(count, tiles, 3, width, device=source.device)
    normalizations().dense_sums[(tiles, triton().cdiv(count, GROUP), triton().cdiv(width, columns))](
        source, centred.channels_last(), partial, unit, count, rows, width, tiles, BLOCK=block, BC=columns, GROUP=GROUP
    )
    own = overwrite and isinstance(difference, Dense)
    return _relu_behind(source, unit, partial, Tail(centred, scale, gamma, before), extra, overwrite=own)


def _relu_behind(
    source: Shaped[Tensor, "p b *rest c"],
    unit: float,
    partial: Float[Tensor, "p tiles 3 c"],
    tail: Tail,
    extra: Difference | Blocks | None,
    *,
    overwrite: bool,
) -> Dense:
    """The second pass: what batch norm, a residual and relu make of differences whose sums are known."""
    count, width = source.shape[0], source.shape[-1]
    rows, columns = source[0].numel() // width, min(WIDEST, triton().next_power_of_2(width))
    made = _made(partial, rows, None, tail.scale, tail.gamma, tail.centred)
    out, factor = empty(count, source.shape[1:], source)
    if overwrite and out.dtype is source.dtype:
        out = source
    kind, more, more_unit, where = _residual(extra, source)
    block = max(1, TILE // columns)
    normalizations().dense_relu[
        (triton().cdiv(rows, block), triton().cdiv(count, GROUP), triton().cdiv(width, columns))
    ](
        source, more, where, tail.centred.channels_last(), tail.before.channels_last(), made, out, unit, more_unit,
        factor, count, rows, width, EXTRA=kind, TF32=_rounds(out), BLOCK=block, BC=columns, GROUP=GROUP,
    )  # fmt: skip
    return finished(out, factor)


def _rounds(out: Tensor) -> bool:
    """True if what is written will be multiplied in TF32, and is to be rounded so."""
    return out.dtype is torch.float32 and precision.current().convolves_in_tf32


def _residual(extra: Difference | Blocks | None, unused: Tensor) -> tuple[int, Tensor, float, Tensor]:
    """The kind of a residual difference, its memory, the factor of its numbers, and its channels."""
    if extra is None:
        return 0, unused, 1.0, unused
    if isinstance(extra, Channel) and extra.axis == 1 and extra.delta.dtype is torch.float32:
        return 2, extra.delta.contiguous(), 1.0, extra.channels.contiguous()
    more, unit = stored(extra)
    return 1, more, unit, unused


# Convolutions ---------------------------------------------------------------------------------------------------------


def _shape(geometry: ConvolutionGeometry) -> dict[str, int]:
    """Kernel, stride, padding in front, and dilation of a convolution of images, as a program takes them."""
    values = {
        "K": geometry.kernel,
        "S": geometry.stride,
        "P": [low for low, _ in geometry.pads],
        "D": geometry.dilation,
    }
    return {f"{name}{axis}": pair[i] for name, pair in values.items() for i, axis in enumerate("HW")}


def convolve_channel(
    difference: Channel, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size
) -> Dense | None:
    """Each perturbation's channel with the filters of that channel, in one pass."""
    if not _takes_channel(difference, weight, geometry, shape):
        return None
    out, scale = _images(difference, shape)
    _launch_channel(difference, weight, geometry, shape, out, scale, convolutions().RAW.value)
    return finished(out, scale)


def _takes_channel(difference: Channel, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size) -> bool:
    fits = max(shape.numel(), difference.delta[0].numel()) < INDEXABLE
    return geometry.ndim == 2 and fits and applies(difference.delta, weight.base)


def _images(difference: Channel, shape: torch.Size) -> tuple[Shaped[Tensor, "p b h w c"], float]:
    """Memory for a dense difference of images of ``shape``, channels last, and the factor of its numbers."""
    batch, channels, height, width = shape
    return empty(difference.count, (batch, height, width, channels), difference.delta)


def _channel_tile(outputs: int) -> tuple[int, int]:
    """Pixels and channels of a tile of the convolution of one channel."""
    block = min(WIDEST, triton().next_power_of_2(outputs))
    return max(16, TILE // 2 // block), block


def _launch_channel(
    difference: Channel,
    weight: Value,
    geometry: ConvolutionGeometry,
    shape: torch.Size,
    out: Shaped[Tensor, "p ..."],
    scale: float,
    outcome: int,
    tail: Tail | None = None,
    made: Float[Tensor, "p 3 o"] | None = None,
) -> None:
    """Fill ``out`` with what is asked of the convolution of a channel; tail and coefficients where that needs them."""
    filters = weight.remember("by_channel", lambda: weight.base.permute(1, 2, 3, 0).contiguous())
    delta, count, (_, outputs, height, width) = difference.delta.contiguous(), difference.count, shape
    rows, (pixels, block) = shape.numel() // outputs, _channel_tile(outputs)
    tiles, group = triton().cdiv(rows, pixels), 1 if tail is None else GROUP
    centred, before = (delta, delta) if tail is None else (tail.centred.channels_last(), tail.before.channels_last())
    convolutions().convolve_channel[(tiles, triton().cdiv(count, group), triton().cdiv(outputs, block))](
        delta, filters, difference.channels.contiguous(), centred, before, delta if made is None else made, out, scale,
        count, rows, tiles, *delta.shape[2:], height, width, outputs, **_shape(geometry), BLOCK=pixels, BO=block,
        GROUP=group, OUTCOME=outcome, TF32=made is not None and _rounds(out),
    )  # fmt: skip


def convolve_dense(difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size) -> Dense | None:
    """A product for each tap: of float16, or in TF32 where there are few channels and cuDNN's tiles are half empty."""
    if not _takes_dense(difference, weight, geometry, shape):
        return None
    out, _ = _convolved(difference, weight, geometry, shape, None)
    return finished(out, difference.scale if isinstance(difference, HalfDense) else 1.0)


def _takes_dense(difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size) -> bool:
    if geometry.ndim != 2 or not applies(weight.base) or max(shape.numel(), difference.shape.numel()) >= INDEXABLE:
        return False
    narrow = precision.current().convolves_in_tf32 and weight.base.shape[1] <= NARROW
    return isinstance(difference, HalfDense) or bool(narrow and applies(difference.dense()) and difference.count)


def _convolved(
    difference: Dense, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size, centred: Value | None
) -> tuple[Shaped[Tensor, "p b h w o"], Float[Tensor, "p tiles 3 o"]]:
    """The convolution of all channels, and its sums over tiles if the centred base values are given, else nothing."""
    outputs, inputs = weight.base.shape[:2]
    source, unit = stored(difference)
    taps = weight.remember(f"taps {source.dtype}", lambda: _taps(weight.base, source.dtype))
    count, (batch, _, height, width) = difference.count, shape
    out = source.new_empty(count, batch, height, width, outputs)
    rows, widest = batch * height * width, LINE // source.element_size()
    channels = min(widest, max(16, triton().next_power_of_2(inputs)))
    tiles, block = triton().cdiv(rows, PIXELS), min(WIDEST, max(16, triton().next_power_of_2(outputs)))
    group = 1 if centred is None else GROUP
    partial = torch.empty(count, tiles if centred is not None else 0, 3, outputs, device=out.device)
    convolutions().convolve_dense[(tiles, triton().cdiv(count, group), triton().cdiv(outputs, block))](
        source, taps, source if centred is None else centred.channels_last(), out, partial, unit, count, rows, tiles,
        *source.shape[2:4], height, width, inputs, outputs, **_shape(geometry), BLOCK=PIXELS, BC=channels,
        NC=triton().cdiv(inputs, channels), BO=block, GROUP=group, SUMMED=centred is not None, PRECISION="tf32",
    )  # fmt: skip
    return out, partial


def convolve_to_tail(
    difference: Channel | Dense | Blocks,
    weight: Value,
    geometry: ConvolutionGeometry,
    shape: torch.Size,
    tail: Tail,
    extra: Difference | Blocks | None,
) -> Dense | None:
    """The sums for batch norm come out of the convolution, so that a single pass over what it writes is left.

    One channel each is convolved twice, for the sums and for what follows, and is not written in between. Maxima, and a
    channel beside a residual, are left to the rules of the parts.
    """
    if tail.window is not None or geometry.groups != 1 or not applies(tail.before.base, tail.scale):
        return None
    if isinstance(difference, Channel):
        alone = extra is None and _takes_channel(difference, weight, geometry, shape)
        return _channel_to_relu(difference, weight, geometry, shape, tail) if alone else None
    if not isinstance(difference, Dense) or not _takes_dense(difference, weight, geometry, shape):
        return None
    out, partial = _convolved(difference, weight, geometry, shape, tail.centred)
    unit = 1 / difference.scale if isinstance(difference, HalfDense) else 1.0
    return _relu_behind(out, unit, partial, tail, extra, overwrite=True)


def _channel_to_relu(
    difference: Channel, weight: Value, geometry: ConvolutionGeometry, shape: torch.Size, tail: Tail
) -> Dense:
    rows, outputs = shape.numel() // shape[1], shape[1]
    tiles = triton().cdiv(rows, _channel_tile(outputs)[0])
    partial = torch.empty(difference.count, tiles, 3, outputs, device=weight.base.device)
    _launch_channel(difference, weight, geometry, shape, partial, 1.0, convolutions().SUMS.value, tail)
    made = _made(partial, rows, None, tail.scale, tail.gamma, tail.centred)
    out, scale = _images(difference, shape)
    _launch_channel(difference, weight, geometry, shape, out, scale, convolutions().RELU.value, tail, made)
    return finished(out, scale)


def _taps(weight: Float[Tensor, "o i h w"], dtype: torch.dtype) -> Shaped[Tensor, "h w o i"]:
    """The weight with a matrix for each tap, rounded to what a product takes of it."""
    taps = weight.permute(2, 3, 0, 1).contiguous()
    if dtype is torch.float16:
        return taps.half()
    return ((taps.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


# Windows --------------------------------------------------------------------------------------------------------------


def shifted_slices(
    padded: Float[Tensor, "i b *spatial"],
    geometry: ConvolutionGeometry,
    size: Sequence[int],
    features: Int64[Tensor, " p"],
    taps: Sequence[Int64[Tensor, " p"]],
    values: Float[Tensor, " p"],
) -> Float[Tensor, "p b h w"] | None:
    """``values[p] * padded[features[p], :, window]``, the window of ``size`` that begins at tap ``taps[:, p]``."""
    if geometry.ndim != 2 or not applies(padded, values) or padded[0].numel() >= INDEXABLE:
        return None
    out = padded.new_empty(values.numel(), padded.shape[1], *size)
    pixels, index = out[0].numel(), [t.contiguous() for t in (features, *taps, values)]
    step = {name: value for name, value in _shape(geometry).items() if name[0] in "SD"}
    windows().shifted_slices[(triton().cdiv(pixels, 1024), values.numel())](
        padded, *index, out, pixels, *padded.shape[2:], *size, **step, BLOCK=1024
    )
    return out


def max_pool(
    difference: Channel | Dense, base: Value, maximum: Value, window: Window
) -> Float[Tensor, "p b *c h w"] | None:
    """``max (z - M + d)`` over windows of base values z with maxima M, of one channel each or of all."""
    if not applies(difference.delta, base.base, maximum.base) or base.base.numel() >= INDEXABLE:
        return None
    height, width = maximum.base.shape[2:]
    own = isinstance(difference, Channel)
    if isinstance(difference, Channel):
        delta, z, m = difference.delta.contiguous(), base.channel_first(1), maximum.channel_first(1)
        out, channels = delta.new_empty(*delta.shape[:2], height, width), 1
    else:
        delta, z, m = channels_last(difference.delta), base.channels_last(), maximum.channels_last()
        channels = delta.shape[-1]
        out = delta.new_empty(*delta.shape[:2], height, width, channels)
    pixels = out[0].numel() // channels
    block = min(WIDEST, triton().next_power_of_2(channels))
    tile = max(1, TILE // 4 // block)
    grid = (triton().cdiv(pixels, tile), out.shape[0], triton().cdiv(channels, block))
    windows().window_maxima[grid](
        delta, z, m, difference.channels.contiguous() if isinstance(difference, Channel) else delta, out, pixels,
        *delta.shape[2:4], height, width, channels, OWN=own, **_window(window), BLOCK=tile, BC=block,
    )  # fmt: skip
    return out if own else out.movedim(-1, 2)


def _window(window: Window) -> dict[str, int]:
    """Size, stride, padding and dilation of a pooling, as a program takes them."""
    values = {"K": window.kernel, "S": window.stride, "P": window.padding, "D": window.dilation}
    return {f"{name}{axis}": pair[i] for name, pair in values.items() for i, axis in enumerate("HW")}
