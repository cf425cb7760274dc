"""Convolutions and transposed convolutions: ``conv(dx, W) + conv(x + dx, dW) + db``.

A one-hot weight difference needs no convolution at all: it is a shifted slice of the input, or, transposed, one input
channel on the output's grid.

Legend: p perturbations, b samples, i input and o output channels (per group, in a weight: ``[o, i, *kernel]``, or
transposed ``[i, o, *kernel]``); spatial, out, kernel: a size for each spatial dimension of input, output, weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64, Num, Shaped
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, fold, unfold_count
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.pointwise import total
from deepzero.graph.rules.shape import reshaped
from deepzero.graph.windows import ConvolutionGeometry, Geometry, TransposedGeometry

aten = torch.ops.aten


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
def convolution(
    call: Call,
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Outcome:
    """A convolution."""
    geometry = call.memo("geometry", lambda: ConvolutionGeometry(weight.base, stride, padding, dilation, groups))
    return _change(call, x, weight, bias, geometry)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(
    call: Call,
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Outcome:
    """A transposed convolution."""
    geometry = call.memo(
        "geometry", lambda: TransposedGeometry(weight.base, stride, padding, output_padding, groups, dilation)
    )
    return _change(call, x, weight, bias, geometry)


def _change(call: Call, x: Operand, weight: Operand, bias: Operand | None, geometry: Geometry) -> Difference:
    x, shape = _batched(call, x, weight)
    parts: list[Difference | None] = []
    if x.difference is not None:
        parts.append(_input_change(x.difference, weight, geometry, shape))
    if weight.difference is not None:
        parts.append(_weight_change(x, weight.difference, geometry, shape))
    change = difference_of(bias)
    if change is not None:
        parts.append(_bias_change(change, shape))
    whole = total(parts)
    assert whole is not None
    return whole if whole.shape == call.output.base.shape else reshaped(whole, call.output.base.shape)


def _batched(call: Call, x: Operand, weight: Operand) -> tuple[Operand, torch.Size]:
    """The input and the output's shape, with a dimension of one sample in front where there is none."""
    shape = call.output.base.shape
    if x.base.dim() == weight.base.dim():
        return x, shape
    value = call.memo("batched", lambda: type(x.value)(x.base.unsqueeze(0)))
    difference = None if x.difference is None else reshaped(x.difference, value.base.shape)
    return Operand(value, difference), torch.Size((1, *shape))


def _bias_change(change: Difference, shape: torch.Size) -> Difference:
    """The change by a bias of the channels (dimension 1)."""
    if isinstance(change, OneHot):
        rest = (shape[0], *shape[2:])
        delta = change.values.reshape(-1, *(1 for _ in rest)).expand(-1, *rest)
        return Channel(1, change.indices, delta, shape)
    delta = change.dense().unsqueeze(1)
    return Dense(delta.reshape(*delta.shape, *(1 for _ in shape[2:])).expand(-1, *shape))


# By the input ---------------------------------------------------------------------------------------------------------


def _input_change(difference: Difference, weight: Operand, geometry: Geometry, shape: torch.Size) -> Difference:
    """``conv(dx, W)``."""
    if isinstance(difference, Channel) and difference.axis == 1:
        if geometry.groups == 1:
            return _from_channel(difference, weight, geometry, shape)
        if weight.base.shape[1] == 1 and weight.base.shape[0] == geometry.groups:
            return _depthwise(difference, weight.base, geometry, shape)
    if isinstance(difference, Channel) and difference.axis == 0:  # one sample
        out = geometry.convolve(difference.delta, weight.base, geometry.groups)
        return Channel(0, difference.channels, out, shape)
    dense = difference if isinstance(difference, Dense) else Dense(difference.dense())
    if isinstance(geometry, ConvolutionGeometry) and geometry.groups == 1:
        fast = kernels.on(weight.base).convolve_dense(dense, weight.value, geometry, shape)
        if fast is not None:
            return fast
    out = geometry.convolve(fold(dense.delta), _laid_out(weight, geometry), geometry.groups)
    return Dense(unfold_count(out, difference.count))


def _laid_out(weight: Operand, geometry: Geometry) -> Shaped[Tensor, "c1 c2 *kernel"]:
    """The weight of a convolution of images in the memory format of dense differences, once a step."""
    if weight.base.dim() != 4 or isinstance(geometry, TransposedGeometry):
        return weight.base
    return weight.value.remember("channels_last", lambda: weight.base.contiguous(memory_format=torch.channels_last))


def _from_channel(difference: Channel, weight: Operand, geometry: Geometry, shape: torch.Size) -> Dense:
    """A channel difference reaches every output channel through its own filters alone: 1/i of the work."""
    if isinstance(geometry, ConvolutionGeometry):
        fast = kernels.on(difference.delta).convolve_channel(difference, weight.value, geometry, shape)
        if fast is not None:
            return fast
    parts = []
    for channel, start, stop in difference.runs:
        single = fold(difference.delta[start:stop]).unsqueeze(1)
        out = geometry.convolve(single, geometry.filters_of(weight.base, channel), 1)
        parts.append(unfold_count(out, stop - start))
    return Dense(parts[0] if len(parts) == 1 else torch.cat(parts))


def _depthwise(
    difference: Channel, weight: Shaped[Tensor, "c 1 *kernel"], geometry: Geometry, shape: torch.Size
) -> Channel:
    """One filter a channel: the channel stays a channel. Perturbations become groups."""
    delta = difference.delta.movedim(0, 1)
    out = geometry.convolve(delta, weight[difference.channels], difference.count)
    return Channel(1, difference.channels, out.movedim(1, 0), shape)


# By the weight --------------------------------------------------------------------------------------------------------


def _weight_change(x: Operand, difference: Difference, geometry: Geometry, shape: torch.Size) -> Difference:
    """``conv(x + dx, dW)``."""
    if isinstance(difference, OneHot):
        if isinstance(geometry, TransposedGeometry):
            return _placed_channels(x, difference, geometry, shape)
        assert isinstance(geometry, ConvolutionGeometry)
        return _scaled_slices(x, difference, geometry, shape)
    by_output = isinstance(geometry, ConvolutionGeometry) and geometry.groups == 1
    if isinstance(difference, Channel) and difference.axis == 0 and by_output and x.difference is None:
        out = geometry.convolve(x.base, difference.delta, 1)  # one output channel for each perturbation
        return Channel(1, difference.channels, out.movedim(1, 0), shape)
    moved = x.base if x.difference is None else x.base + x.difference.dense()
    convolve = torch.func.vmap(
        lambda a, w: geometry.convolve(a, w, geometry.groups), in_dims=(None if x.difference is None else 0, 0)
    )
    return Dense(convolve(moved, difference.dense()))


def _moved_channels(x: Operand, features: Int64[Tensor, " p"]) -> Num[Tensor, "p b *spatial"]:
    """One channel of ``x + dx`` for each perturbation."""
    picked = x.value.channel_first(1)[features]
    difference = x.difference
    if difference is None:
        return picked
    if isinstance(difference, Channel) and difference.axis == 1:
        same = (difference.channels == features).reshape(-1, *(1 for _ in picked.shape[1:]))
        return picked + torch.where(same, difference.delta, 0)
    dense = difference.dense()
    return picked + dense[torch.arange(len(dense), device=dense.device), :, features]


def _scaled_slices(x: Operand, difference: OneHot, geometry: ConvolutionGeometry, shape: torch.Size) -> Channel:
    """The slice of the padded (and moved) input that each perturbed weight multiplies, times its difference."""
    outputs, inputs, *taps = difference.positions()
    features = inputs + outputs // (difference.shape[0] // geometry.groups) * difference.shape[1]
    if x.difference is not None:
        padded = geometry.pad(_moved_channels(x, features)).contiguous()
        features = torch.arange(len(features), device=features.device)
    else:
        padded = x.value.remember(f"padded{geometry.pads}", lambda: geometry.pad(x.base.movedim(1, 0)).contiguous())
    out = kernels.on(padded).shifted_slices(padded, geometry, shape[2:], features, taps, difference.values)
    if out is None:
        out = geometry.windows(padded, shape[2:])[(features, *taps)]
        out.mul_(difference.values.reshape(-1, *(1 for _ in out.shape[1:])))
    return Channel(1, outputs, out, shape)


def _placed_channels(x: Operand, difference: OneHot, geometry: TransposedGeometry, shape: torch.Size) -> Channel:
    """The (moved) input channel that each perturbed weight multiplies, on the output's grid, times its difference."""
    features, outputs, *taps = difference.positions()
    group = torch.div(features, difference.shape[0] // geometry.groups, rounding_mode="floor")
    source = _moved_channels(x, features)
    source = source * difference.values.reshape(-1, *(1 for _ in source.shape[1:]))
    placed = _placed(source, torch.stack(taps), geometry, shape[2:])
    return Channel(1, group * difference.shape[1] + outputs, placed, shape)


def _placed(
    source: Num[Tensor, "p b *spatial"],
    taps: Int64[Tensor, "ndim p"],
    geometry: TransposedGeometry,
    size: Sequence[int],
) -> Num[Tensor, "p b *out"]:
    """Each input channel on the output's grid, from the tap of its perturbation; one tap after another."""
    out = source.new_zeros(*source.shape[:2], *size)
    for tap in itertools.product(*(range(k) for k in geometry.kernel)):
        mine = (taps == torch.tensor(tap, device=taps.device).unsqueeze(1)).all(0).nonzero().squeeze(1)
        if len(mine) == 0:
            continue
        pairs = [geometry.places(a, t, source.shape[a + 2], size[a]) for a, t in enumerate(tap)]
        read, write = zip(*pairs, strict=True)
        out[(mine, slice(None), *write)] = source[(mine, slice(None), *read)]
    return out
