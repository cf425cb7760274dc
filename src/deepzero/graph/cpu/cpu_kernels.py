"""Kernels for float32 and float64 tensors on a CPU: the functions of :class:`deepzero.graph.kernels.Kernels`.

Each returns None where it does not apply: for other dtypes, more or fewer spatial dimensions, windows that overlap.

Legend: p perturbations, b samples, c channels, i input and o output channels, h height, w width; rest: positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu import (
    activation_kernels,
    attention_kernels,
    convolution_kernels,
    perceptron_kernels,
    rank_one_kernels,
    row_kernels,
)
from deepzero.graph.cpu.convolution_kernels import coefficients_of
from deepzero.graph.differences import Channel, Dense, Difference, channels_last
from deepzero.graph.windows import ConvolutionGeometry, Window

WIDE = 512
"""Columns that a compiled loop likes to see side by side."""

activation = activation_kernels.activation
affine_to_tail = convolution_kernels.affine_to_tail
attention = attention_kernels.attention
convolve_channel = convolution_kernels.convolve_channel
convolve_dense = convolution_kernels.convolve_dense
convolve_to_tail = convolution_kernels.convolve_to_tail
linear_of_blocks = convolution_kernels.linear_of_blocks
slices_to_tail = convolution_kernels.slices_to_tail
behind_kink = rank_one_kernels.behind_kink
perceptron = perceptron_kernels.perceptron
rows_that_cross = rank_one_kernels.rows_that_cross
rectified_rows = rank_one_kernels.rectified_rows
normalize = row_kernels.normalize
softmax = row_kernels.softmax
label_losses = row_kernels.label_losses
label_losses_of_sums = row_kernels.label_losses_of_sums


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import compiled_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


def applies(*tensors: Tensor) -> bool:
    """True if the compiled loops take these tensors."""
    return all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors)


def indices(numbers: Int64[Tensor, " p"]) -> Any:
    """An array of indices in contiguous memory: a loop is compiled once for each layout of its arguments."""
    return numbers.contiguous().numpy()


def base_channels(value: Value) -> Shaped[Tensor, "c columns"]:
    """A base value ``[b, c, *rest]`` with channels first, contiguous, all else in columns, once a step."""
    return value.channel_first(1).flatten(1)


def normalize_relu_channel(
    difference: Channel,
    centred: Value,
    scale: Float[Tensor, " c"],
    gamma: Float[Tensor, " c"] | None,
    before: Value,
) -> Float[Tensor, "p b *rest"] | None:
    """One pass for the sums, one for ``relu(before + v) - relu(before)`` with ``v = slope d + tilt c + shift``."""
    if not applies(difference.delta, before.base):
        return None
    channels, delta = difference.channels, difference.delta.contiguous().flatten(1)
    base, pre = base_channels(centred), base_channels(before)
    sums = torch.zeros(difference.count, 3, dtype=torch.float64)
    index = indices(channels)
    compiled().channel_sums(delta.numpy(), base.numpy(), index, sums.numpy())
    residue = centred.remember("residue", lambda: base.mean(1, dtype=torch.float64))[channels]
    picked = None if gamma is None else gamma[channels]
    coefficients = coefficients_of(sums, delta.shape[1], scale[channels], picked, residue)
    out = torch.empty_like(delta)
    parts = [c.to(delta.dtype).numpy() for c in coefficients]
    compiled().channel_affine_relu(delta.numpy(), base.numpy(), pre.numpy(), index, *parts, out.numpy())
    return out.view(difference.delta.shape)


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
    """The same over all channels, which lie side by side in memory; with ``overwrite``, in delta's own."""
    delta = difference.dense()
    if not applies(delta, before.base):
        return None
    source = channels_last(delta)
    count, width = source.shape[0], source.shape[-1]
    rows = source[0].numel() // width
    side = _side_by_side(rows, width)
    shape = (rows // side, side * width)
    flat, base, pre = (
        source.view(count, *shape),
        centred.channels_last().view(shape),
        before.channels_last().view(shape),
    )
    sums = torch.zeros(count, 3, shape[1], dtype=torch.float64)
    partial = torch.empty(count, 3, shape[1], dtype=delta.dtype)
    compiled().column_sums(flat.numpy(), base.numpy(), partial.numpy(), sums.numpy())
    residue = centred.remember("residue", lambda: centred.channels_last().flatten(0, -2).mean(0, dtype=torch.float64))
    sums = sums.view(count, 3, side, width).sum(2)
    coefficients = coefficients_of(sums, rows, scale, gamma, residue)
    parts = [c.to(delta.dtype).repeat(1, side).numpy() for c in coefficients]
    out = source if overwrite else source.clone()
    target = out.view(count, *shape).numpy()
    if extra is None:
        compiled().affine_relu(target, base.numpy(), pre.numpy(), *parts)
    else:
        more = channels_last(extra.dense()).view(count, *shape)
        compiled().affine_add_relu(target, more.numpy(), base.numpy(), pre.numpy(), *parts)
    return Dense(out.movedim(-1, 2))


def _side_by_side(rows: int, width: int) -> int:
    """Number of rows to lay side by side so that the loops over columns are long."""
    side = 1
    while rows % (2 * side) == 0 and 2 * side * width <= WIDE:
        side *= 2
    return side


def shifted_slices(
    padded: Float[Tensor, "i b *spatial"],
    geometry: ConvolutionGeometry,
    size: Sequence[int],
    features: Int64[Tensor, " p"],
    taps: Sequence[Int64[Tensor, " p"]],
    values: Float[Tensor, " p"],
) -> Float[Tensor, "p b h w"] | None:
    """``values[p] * padded[features[p], :, window]``, the window of ``size`` that begins at tap ``taps[:, p]``."""
    if geometry.ndim != 2 or not applies(padded, values):
        return None
    out = padded.new_empty(values.numel(), padded.shape[1], *size)
    index = [indices(t) for t in (features, *taps)]
    compiled().shifted_slices(padded.numpy(), *index, values.numpy(), geometry.stride, geometry.dilation, out.numpy())
    return out


def max_pool(
    difference: Channel | Dense, base: Value, maximum: Value, window: Window
) -> Float[Tensor, "p b *c h w"] | None:
    """``max (z - M + d)`` over windows that tile height and width, M being the maximum of z; one channel or all."""
    width = base.base.shape[3]
    if not window.tiles(base.base.shape[2:], maximum.base.shape[2:]) or not applies(difference.delta, base.base):
        return None
    gap = base.remember(f"gap{window}", lambda: _gap(base.base, maximum.base, window))
    if isinstance(difference, Channel):
        delta, index = difference.delta.contiguous(), indices(difference.channels)
        own = base.remember(f"channel gap{window}", lambda: gap.movedim(-1, 0).contiguous())
        line, out = delta.new_empty(width), delta.new_empty(*delta.shape[:2], *maximum.base.shape[2:])
        compiled().disjoint_channel_maxima(delta.numpy(), own.numpy(), index, window.kernel, line.numpy(), out.numpy())
        return out
    delta = channels_last(difference.delta)
    line = delta.new_empty(width * delta.shape[-1])
    out = delta.new_empty(*delta.shape[:2], *maximum.base.shape[2:], delta.shape[-1])
    compiled().disjoint_maxima(delta.numpy(), gap.numpy(), window.kernel, line.numpy(), out.numpy())
    return out.movedim(-1, 2)


def _gap(
    base: Float[Tensor, "b c h w"], maximum: Float[Tensor, "b c h_out w_out"], window: Window
) -> Float[Tensor, "b h w c"]:
    """Base value minus the maximum of its window, channels last."""
    spread = maximum.repeat_interleave(window.stride[0], 2).repeat_interleave(window.stride[1], 3)
    return (base - spread).movedim(1, -1).contiguous()
