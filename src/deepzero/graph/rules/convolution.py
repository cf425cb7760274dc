"""Convolutions. A one-hot weight difference is a shifted slice of the input: no convolution at all.

Legend: p perturbations, b samples, i input channels (per group, in a weight), o output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.cpu import kernels
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, fold, unfold_count
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.pointwise import total
from deepzero.graph.rules.shape import reshaped

aten = torch.ops.aten
CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class Geometry:
    """Stride, padding, dilation and groups of a convolution, per spatial dimension."""

    def __init__(
        self, weight: Shaped[Tensor, "o i *kernel"], stride: Any, padding: Any, dilation: Any, groups: int
    ) -> None:
        self.ndim = weight.dim() - 2
        self.kernel = tuple(weight.shape[2:])
        self.stride = self._each(stride)
        self.dilation = self._each(dilation)
        self.groups = groups
        if isinstance(padding, str):
            spread = [d * (k - 1) if padding == "same" else 0 for d, k in zip(self.dilation, self.kernel, strict=True)]
            self.pads = [(s // 2, s - s // 2) for s in spread]
        else:
            self.pads = [(p, p) for p in self._each(padding)]

    def _each(self, value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        return values * self.ndim if len(values) == 1 else values

    def pad(self, x: Shaped[Tensor, "n c *spatial"]) -> Shaped[Tensor, "n c *padded"]:
        """``x`` with the convolution's zero padding."""
        flat = [p for pair in reversed(self.pads) for p in pair]
        return F.pad(x, flat) if any(flat) else x

    def convolve(
        self, x: Shaped[Tensor, "b c *spatial"], weight: Shaped[Tensor, "o i *kernel"], groups: int
    ) -> Shaped[Tensor, "b o *out"]:
        """The convolution without bias."""
        symmetric = all(low == high for low, high in self.pads)
        padding = tuple(low for low, _ in self.pads) if symmetric else 0
        x = x if symmetric else self.pad(x)
        return CONVOLVE[weight.dim()](x, weight, None, self.stride, padding, self.dilation, groups)

    def windows(self, padded: Shaped[Tensor, "i b *spatial"], out: Sequence[int]) -> Shaped[Tensor, "i ..."]:
        """Every shifted slice that the kernel sees, a view ``[i, *kernel, b, *out]``."""
        lead, spatial = padded.stride()[:2], padded.stride()[2:]
        taps = [s * d for s, d in zip(spatial, self.dilation, strict=True)]
        steps = [s * d for s, d in zip(spatial, self.stride, strict=True)]
        size = (padded.shape[0], *self.kernel, padded.shape[1], *out)
        return padded.as_strided(size, (lead[0], *taps, lead[1], *steps))


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
    """``conv(dx, W) + conv(x + dx, dW) + db``."""
    geometry = call.memo("geometry", lambda: Geometry(weight.base, stride, padding, dilation, groups))
    x, shape = batched(call, x, weight)
    change = _convolution_change(call, x, weight, bias, geometry, shape)
    return (
        change if change is None or change.shape == call.output.base.shape else reshaped(change, call.output.base.shape)
    )


def batched(call: Call, x: Operand, weight: Operand) -> tuple[Operand, torch.Size]:
    """The input and the output's shape, with a dimension of one sample in front where there is none."""
    shape = call.output.base.shape
    if x.base.dim() == weight.base.dim():
        return x, shape
    value = call.memo("batched", lambda: type(x.value)(x.base.unsqueeze(0)))
    difference = None if x.difference is None else reshaped(x.difference, value.base.shape)
    return Operand(value, difference), torch.Size((1, *shape))


def _convolution_change(
    call: Call, x: Operand, weight: Operand, bias: Operand | None, geometry: Geometry, shape: torch.Size
) -> Difference | None:
    parts: list[Difference | None] = []
    if x.difference is not None:
        parts.append(_input_change(call, x.difference, weight, geometry, shape))
    if weight.difference is not None:
        parts.append(_weight_change(x, weight.difference, geometry, shape))
    change = difference_of(bias)
    if change is not None:
        parts.append(bias_change(change, shape))
    return total(parts)


def bias_change(change: Difference, shape: torch.Size) -> Difference:
    """The change by a bias of the channels (dimension 1)."""
    if isinstance(change, OneHot):
        rest = (shape[0], *shape[2:])
        delta = change.values.reshape(-1, *(1 for _ in rest)).expand(-1, *rest)
        return Channel(1, change.indices, delta, shape)
    delta = change.dense().unsqueeze(1)
    return Dense(delta.reshape(*delta.shape, *(1 for _ in shape[2:])).expand(-1, *shape))


def _input_change(
    call: Call, difference: Difference, weight: Operand, geometry: Geometry, shape: torch.Size
) -> Difference:
    if isinstance(difference, Channel) and difference.axis == 1:
        if geometry.groups == 1:
            return _from_channel(difference, weight, geometry, shape)
        if weight.base.shape[1] == 1 and weight.base.shape[0] == geometry.groups:
            return _depthwise(difference, weight.base, geometry, shape)
    if isinstance(difference, Channel) and difference.axis == 0:  # one sample
        out = geometry.convolve(difference.delta, weight.base, geometry.groups)
        return Channel(0, difference.channels, out, shape)
    out = geometry.convolve(fold(difference.dense()), _channels_last(weight), geometry.groups)
    return Dense(unfold_count(out, difference.count))


def _channels_last(weight: Operand) -> Shaped[Tensor, "o i *kernel"]:
    """The weight in the memory format of dense differences, once a step."""
    if weight.base.dim() != 4:
        return weight.base
    return weight.value.remember("channels_last", lambda: weight.base.contiguous(memory_format=torch.channels_last))


def _from_channel(difference: Channel, weight: Operand, geometry: Geometry, shape: torch.Size) -> Dense:
    """A channel difference reaches every output channel through ``W[:, c]`` alone: 1/i of the work."""
    fast = kernels.convolve_channel(difference, weight, geometry, shape)
    if fast is not None:
        return Dense(fast)
    parts = []
    for channel, start, stop in difference.runs:
        single = fold(difference.delta[start:stop]).unsqueeze(1)
        out = geometry.convolve(single, weight.base[:, channel : channel + 1], 1)
        parts.append(unfold_count(out, stop - start))
    return Dense(parts[0] if len(parts) == 1 else torch.cat(parts))


def _depthwise(
    difference: Channel, weight: Shaped[Tensor, "c 1 *kernel"], geometry: Geometry, shape: torch.Size
) -> Channel:
    """One filter a channel: the channel stays a channel. Perturbations become groups."""
    delta = difference.delta.movedim(0, 1)
    out = geometry.convolve(delta, weight[difference.channels], difference.count)
    return Channel(1, difference.channels, out.movedim(1, 0), shape)


def _weight_change(x: Operand, difference: Difference, geometry: Geometry, shape: torch.Size) -> Difference:
    """``conv(x + dx, dW)``."""
    if isinstance(difference, OneHot):
        outputs, inputs, *taps = difference.positions()
        features = inputs + outputs // (difference.shape[0] // geometry.groups) * difference.shape[1]
        return Channel(1, outputs, _scaled_slices(x, geometry, shape, features, taps, difference.values), shape)
    if isinstance(difference, Channel) and difference.axis == 0 and geometry.groups == 1 and x.difference is None:
        out = geometry.convolve(x.base, difference.delta, 1)  # one output channel for each perturbation
        return Channel(1, difference.channels, out.movedim(1, 0), shape)
    moved = x.base if x.difference is None else x.base + x.difference.dense()
    convolve = torch.func.vmap(
        lambda a, w: geometry.convolve(a, w, geometry.groups), in_dims=(None if x.difference is None else 0, 0)
    )
    return Dense(convolve(moved, difference.dense()))


def moved_channels(x: Operand, features: Int64[Tensor, " p"]) -> Num[Tensor, "p b *spatial"]:
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


def _scaled_slices(
    x: Operand,
    geometry: Geometry,
    shape: torch.Size,
    features: Int64[Tensor, " p"],
    taps: Sequence[Int64[Tensor, " p"]],
    values: Num[Tensor, " p"],
) -> Num[Tensor, "p b *out"]:
    """The slice of the padded (and moved) input that each perturbed weight multiplies, times its value."""
    if x.difference is not None:
        padded = geometry.pad(moved_channels(x, features)).contiguous()
        features = torch.arange(len(features), device=features.device)
    else:
        padded = x.value.remember(f"padded{geometry.pads}", lambda: geometry.pad(x.base.movedim(1, 0)).contiguous())
    fast = kernels.shifted_slices(padded, geometry, shape, features, taps, values)
    if fast is not None:
        return fast
    picked = geometry.windows(padded, shape[2:])[(features, *taps)]
    return picked.mul_(values.reshape(-1, *(1 for _ in picked.shape[1:])))
