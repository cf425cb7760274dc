"""Windows over height, width and further spatial dimensions: those of convolutions and of pooling.

Legend: n and b samples, c channels, i input and o output channels (of a group, in a weight), p perturbations; spatial,
kernel, out: one size for each spatial dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Num, Shaped
from torch import Tensor

CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
"""Dimensions of a weight -> the convolution."""


class Geometry(ABC):
    """Kernel, stride, dilation and groups of a convolution, per spatial dimension."""

    def __init__(self, weight: Shaped[Tensor, "o i *kernel"], stride: Any, dilation: Any, groups: int) -> None:
        self.kernel = tuple(weight.shape[2:])
        self.groups = groups
        self.stride = self.each(stride)
        self.dilation = self.each(dilation)

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    def each(self, value: Any) -> tuple[int, ...]:
        """An option for every spatial dimension; a single number stands for all of them."""
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        return values * self.ndim if len(values) == 1 else values

    @abstractmethod
    def convolve(
        self, x: Shaped[Tensor, "b c *spatial"], weight: Shaped[Tensor, "c1 c2 *kernel"], groups: int
    ) -> Shaped[Tensor, "b c_out *out"]:
        """The convolution without bias, in ``groups`` groups."""

    @abstractmethod
    def filters_of(self, weight: Shaped[Tensor, "c1 c2 *kernel"], channel: int) -> Shaped[Tensor, "f1 f2 *kernel"]:
        """The part of an ungrouped weight that one input channel meets."""


class ConvolutionGeometry(Geometry):
    """Of a convolution with a weight ``[o, i, *kernel]``."""

    def __init__(
        self, weight: Shaped[Tensor, "o i *kernel"], stride: Any, padding: Any, dilation: Any, groups: int
    ) -> None:
        super().__init__(weight, stride, dilation, groups)
        if isinstance(padding, str):
            spread = [d * (k - 1) if padding == "same" else 0 for d, k in zip(self.dilation, self.kernel, strict=True)]
            self.pads = [(s // 2, s - s // 2) for s in spread]
        else:
            self.pads = [(p, p) for p in self.each(padding)]

    def pad(self, x: Shaped[Tensor, "n c *spatial"]) -> Shaped[Tensor, "n c *padded"]:
        """``x`` with the convolution's zero padding."""
        flat = [p for pair in reversed(self.pads) for p in pair]
        return F.pad(x, flat) if any(flat) else x

    def convolve(
        self, x: Shaped[Tensor, "b c *spatial"], weight: Shaped[Tensor, "o i *kernel"], groups: int
    ) -> Shaped[Tensor, "b o *out"]:
        """The convolution without bias, in ``groups`` groups."""
        symmetric = all(low == high for low, high in self.pads)
        padding = tuple(low for low, _ in self.pads) if symmetric else 0
        x = x if symmetric else self.pad(x)
        return CONVOLVE[weight.dim()](x, weight, None, self.stride, padding, self.dilation, groups)

    def filters_of(self, weight: Shaped[Tensor, "o i *kernel"], channel: int) -> Shaped[Tensor, "o 1 *kernel"]:
        """The part of an ungrouped weight that one input channel meets."""
        return weight[:, channel : channel + 1]

    def windows(self, padded: Shaped[Tensor, "i b *spatial"], out: Sequence[int]) -> Shaped[Tensor, "i ..."]:
        """Every shifted slice that the kernel sees, a view ``[i, *kernel, b, *out]``."""
        lead, spatial = padded.stride()[:2], padded.stride()[2:]
        taps = [s * d for s, d in zip(spatial, self.dilation, strict=True)]
        steps = [s * d for s, d in zip(spatial, self.stride, strict=True)]
        size = (padded.shape[0], *self.kernel, padded.shape[1], *out)
        return padded.as_strided(size, (lead[0], *taps, lead[1], *steps))


class TransposedGeometry(Geometry):
    """Of a transposed convolution with a weight ``[i, o, *kernel]``."""

    def __init__(
        self,
        weight: Shaped[Tensor, "i o *kernel"],
        stride: Any,
        padding: Any,
        output_padding: Any,
        groups: int,
        dilation: Any,
    ) -> None:
        super().__init__(weight, stride, dilation, groups)
        self.padding, self.output_padding = self.each(padding), self.each(output_padding)

    def convolve(
        self, x: Shaped[Tensor, "b c *spatial"], weight: Shaped[Tensor, "i o *kernel"], groups: int
    ) -> Shaped[Tensor, "b c_out *out"]:
        """The transposed convolution without bias, in ``groups`` groups."""
        options = (self.stride, self.padding, self.output_padding, groups, self.dilation)
        return TRANSPOSED[weight.dim()](x, weight, None, *options)

    def filters_of(self, weight: Shaped[Tensor, "i o *kernel"], channel: int) -> Shaped[Tensor, "1 o *kernel"]:
        """The part of an ungrouped weight that one input channel meets."""
        return weight[channel : channel + 1]

    def places(self, axis: int, tap: int, size: int, out: int) -> tuple[slice, slice]:
        """Along a spatial dimension: the inputs that a tap sends into the output, and where it sends them."""
        step, start = self.stride[axis], tap * self.dilation[axis] - self.padding[axis]
        first = max(0, -(start // step))
        last = min(size - 1, (out - 1 - start) // step)
        if last < first:
            return slice(0, 0), slice(0, 0)
        return slice(first, last + 1), slice(start + first * step, start + last * step + 1, step)


@dataclass(frozen=True)
class Window:
    """A pooling window over height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
        """From the options of a pooling of images; without a stride, the windows lie side by side."""
        return cls(_pair(kernel_size), _pair(stride or kernel_size), _pair(padding), _pair(dilation))

    @classmethod
    def of_line(cls, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
        """From the options of a pooling along one dimension: of images of height 1."""
        image = cls.of(kernel_size, stride, padding, dilation)
        return cls((1, image.kernel[1]), (1, image.stride[1]), (0, image.padding[1]), (1, image.dilation[1]))

    def tiles(self, size: Sequence[int], out: Sequence[int]) -> bool:
        """True if the windows cover an image of ``size`` without overlap, gap or margin, ``out`` in each direction."""
        plain = self.padding == (0, 0) and self.stride == self.kernel and self.dilation == (1, 1)
        return plain and tuple(s * n for s, n in zip(self.stride, out, strict=True)) == tuple(size)

    def entry(
        self, t: Num[Tensor, "*lead h w"], row: int, column: int, out: Sequence[int], fill: float
    ) -> Num[Tensor, "*lead h_out w_out"]:
        """Entry ``(row, column)`` of every window of ``t``, padded with ``fill``; there are ``out`` windows."""
        extent = [
            (size - 1) * s + (k - 1) * d + 1
            for size, s, k, d in zip(out, self.stride, self.kernel, self.dilation, strict=True)
        ]
        low = self.padding
        high = [max(0, e - p - n) for e, p, n in zip(extent, low, t.shape[-2:], strict=True)]
        if any(low) or any(high):
            t = F.pad(t, (low[1], high[1], low[0], high[0]), value=fill)
        rows, columns = (
            slice(first * d, first * d + (size - 1) * s + 1, s)
            for first, d, size, s in zip((row, column), self.dilation, out, self.stride, strict=True)
        )
        return t[..., rows, columns]


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])
