"""The eight-layer network without running statistics on which the paper compares with input-weight alignment.

A. Boopathy, I. Fiete, "How to Train Your Wide Neural Network Without Backprop: An Input-Weight Alignment Perspective",
ICML 2022.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

STRIDES = (1, 1, 1, 2, 1, 2, 1)
KERNEL = 3
EPSILON = 1e-6


class ScaledConv2d(nn.Module):
    """A 3x3 convolution in the NTK parametrization, ``conv(x, W) / sqrt(9 in_channels) + b``, padded as ``SAME``.

    The weights are drawn from the standard normal distribution, the biases are 0. Zeros pad the image to a height and a
    width of ``ceil(size / stride)`` after the convolution; where their number is odd, the bottom and the right get one
    more, as in TensorFlow.

    Shapes: ``[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.stride = stride
        self.scale = 1 / math.sqrt(KERNEL**2 * in_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        weight = self.weight * self.scale
        (top, bottom), (left, right) = (_same_padding(size, self.stride) for size in x.shape[2:])
        if (top, left) == (bottom, right):
            return F.conv2d(x, weight, self.bias, self.stride, (top, left))
        # Padded in channels-last order, in which deepzero keeps the differences of images.
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
        return F.conv2d(padded, weight, self.bias, self.stride)


class ScaledLinear(nn.Module):
    """A linear layer in the NTK parametrization, ``x W^T / sqrt(in_features) + b``; weights standard normal, biases 0.

    Shapes: ``[N, in_features] -> [N, out_features]``.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = 1 / math.sqrt(in_features)

    def forward(self, x: Float[Tensor, "b features"]) -> Float[Tensor, "b out"]:
        return F.linear(x, self.weight * self.scale, self.bias)


class WideCNN(nn.Module):
    """Seven 3x3 convolutions with batch norm over the batch alone and ReLU; global average pooling and a linear layer.

    The strides are 1, 1, 1, 2, 1, 2, 1. Every entry of a map is normalized by its own mean and variance over the batch
    (no affine part, no running statistics), in train and in eval mode alike, so that a prediction depends on the batch
    that it is made in.

    Shapes: ``[N, in_channels, H, W] -> [N, num_classes]`` (logits), for N of at least 2.

    Args:
        width: channels of every convolution.
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        InvalidInputError: an argument is not a positive integer; on call: the batch has one sample only.

    >>> [sum(p.numel() for p in WideCNN(width=width).parameters()) for width in (8, 16, 32, 64)]
    [3818, 14538, 56714, 224010]
    """

    def __init__(self, *, width: int = 32, in_channels: int = 3, num_classes: int = 10) -> None:
        validation.counts(width=width, in_channels=in_channels, num_classes=num_classes)
        super().__init__()
        self.convs = nn.ModuleList(
            ScaledConv2d(width if i else in_channels, width, stride=stride) for i, stride in enumerate(STRIDES)
        )
        self.fc = ScaledLinear(width, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        for conv in self.convs:
            z = conv(x)
            x = rectified(normalized(z), z.shape)
        logits: Tensor = self.fc(pooled(x))
        return logits


def normalized(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h*w*c"]:
    """Every entry of the maps less its mean over the batch, over its standard deviation; flat, channels last."""
    if z.shape[0] < 2:
        raise InvalidInputError(
            "wide_cnn normalizes over the batch, in eval mode too: it needs 2 samples or more, got 1; "
            "choose a batch size that leaves no batch of one"
        )
    return F.batch_norm(z.permute(0, 2, 3, 1).flatten(1), None, None, training=True, eps=EPSILON)


def rectified(y: Float[Tensor, "b n"], shape: torch.Size) -> Float[Tensor, "b c h w"]:
    """``max(y, 0)`` of what :func:`normalized` returned, as maps of ``shape``."""
    _, channels, height, width = shape
    return F.relu(y).view(-1, height, width, channels).permute(0, 3, 1, 2)


def pooled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Means over height and width."""
    return x.mean((2, 3))


def _same_padding(size: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + KERNEL - size, 0)
    return total // 2, total - total // 2
