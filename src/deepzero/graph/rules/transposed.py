"""Transposed convolutions. A one-hot weight difference places one input channel on the output's grid: no convolution.

Legend: p perturbations, b samples, i input and o output channels (per group, in a weight ``[i, o, *kernel]``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, fold, unfold_count
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.convolution import batched, bias_change, moved_channels
from deepzero.graph.rules.pointwise import total
from deepzero.graph.rules.shape import reshaped

aten = torch.ops.aten
CONVOLVE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


class Geometry:
    """Stride, padding, dilation and groups of a transposed convolution, per spatial dimension."""

    def __init__(
        self,
        weight: Shaped[Tensor, "i o *kernel"],
        stride: Any,
        padding: Any,
        output_padding: Any,
        groups: int,
        dilation: Any,
    ) -> None:
        self.ndim, self.kernel, self.groups = weight.dim() - 2, tuple(weight.shape[2:]), groups
        self.stride, self.padding = self._each(stride), self._each(padding)
        self.output_padding, self.dilation = self._each(output_padding), self._each(dilation)

    def _each(self, value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        return values * self.ndim if len(values) == 1 else values

    def convolve(
        self, x: Shaped[Tensor, "b c *spatial"], weight: Shaped[Tensor, "i o *kernel"], groups: int
    ) -> Shaped[Tensor, "b c_out *out"]:
        """The transposed convolution without bias."""
        options = (self.stride, self.padding, self.output_padding, groups, self.dilation)
        return CONVOLVE[weight.dim()](x, weight, None, *options)

    def places(self, axis: int, tap: int, size: int, out: int) -> tuple[slice, slice]:
        """Along a spatial dimension: the inputs that a tap sends into the output, and where it sends them."""
        step, start = self.stride[axis], tap * self.dilation[axis] - self.padding[axis]
        first = max(0, -(start // step))
        last = min(size - 1, (out - 1 - start) // step)
        if last < first:
            return slice(0, 0), slice(0, 0)
        return slice(first, last + 1), slice(start + first * step, start + last * step + 1, step)


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
    """``conv(dx, W) + conv(x + dx, dW) + db``."""
    geometry = call.memo("geometry", lambda: Geometry(weight.base, stride, padding, output_padding, groups, dilation))
    x, shape = batched(call, x, weight)
    parts: list[Difference | None] = []
    if x.difference is not None:
        parts.append(_input_change(x.difference, weight.base, geometry, shape))
    if weight.difference is not None:
        parts.append(_weight_change(x, weight.difference, geometry, shape))
    change = difference_of(bias)
    if change is not None:
        parts.append(bias_change(change, shape))
    whole = total(parts)
    assert whole is not None
    return whole if whole.shape == call.output.base.shape else reshaped(whole, call.output.base.shape)


def _input_change(
    difference: Difference, weight: Shaped[Tensor, "i o *kernel"], geometry: Geometry, shape: torch.Size
) -> Difference:
    if isinstance(difference, Channel) and difference.axis == 1:
        if geometry.groups == 1:
            return _from_channel(difference, weight, geometry)
        if weight.shape[0] == geometry.groups and weight.shape[1] == 1:
            delta = difference.delta.movedim(0, 1)  # perturbations become groups
            out = geometry.convolve(delta, weight[difference.channels], difference.count)
            return Channel(1, difference.channels, out.movedim(1, 0), shape)
    if isinstance(difference, Channel) and difference.axis == 0:  # one sample
        return Channel(0, difference.channels, geometry.convolve(difference.delta, weight, geometry.groups), shape)
    out = geometry.convolve(fold(difference.dense()), weight, geometry.groups)
    return Dense(unfold_count(out, difference.count))


def _from_channel(difference: Channel, weight: Shaped[Tensor, "i o *kernel"], geometry: Geometry) -> Dense:
    """A channel reaches every output channel through ``W[c]`` alone: 1/i of the work."""
    parts = []
    for channel, start, stop in difference.runs:
        single = fold(difference.delta[start:stop]).unsqueeze(1)
        parts.append(unfold_count(geometry.convolve(single, weight[channel : channel + 1], 1), stop - start))
    return Dense(parts[0] if len(parts) == 1 else torch.cat(parts))


def _weight_change(x: Operand, difference: Difference, geometry: Geometry, shape: torch.Size) -> Difference:
    """``conv(x + dx, dW)``."""
    if isinstance(difference, OneHot):
        features, outputs, *taps = difference.positions()
        group = torch.div(features, difference.shape[0] // geometry.groups, rounding_mode="floor")
        source = moved_channels(x, features)
        source = source * difference.values.reshape(-1, *(1 for _ in source.shape[1:]))
        placed = _placed(source, torch.stack(taps), geometry, shape)
        return Channel(1, group * difference.shape[1] + outputs, placed, shape)
    moved = x.base if x.difference is None else x.base + x.difference.dense()
    convolve = torch.func.vmap(
        lambda a, w: geometry.convolve(a, w, geometry.groups), in_dims=(None if x.difference is None else 0, 0)
    )
    return Dense(convolve(moved, difference.dense()))


def _placed(
    source: Num[Tensor, "p b *spatial"], taps: Int64[Tensor, "ndim p"], geometry: Geometry, shape: torch.Size
) -> Num[Tensor, "p b *out"]:
    """Each input channel on the output's grid, from the tap of its perturbation; one tap after another."""
    out = source.new_zeros(*source.shape[:2], *shape[2:])
    for tap in itertools.product(*(range(k) for k in geometry.kernel)):
        mine = (taps == torch.tensor(tap, device=taps.device).unsqueeze(1)).all(0).nonzero().squeeze(1)
        if len(mine) == 0:
            continue
        pairs = [geometry.places(a, t, source.shape[a + 2], shape[a + 2]) for a, t in enumerate(tap)]
        read, write = zip(*pairs, strict=True)
        out[(mine, slice(None), *write)] = source[(mine, slice(None), *read)]
    return out
