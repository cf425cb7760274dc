"""Residual networks for small images: the CIFAR family (depth 6n + 2) and ResNet-18 with a 3x3 stem.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)

ShortcutFactory = Callable[[int, int, int], nn.Module]


class PaddedShortcut(nn.Module):
    """Option A of He et al.: subsample by ``stride`` and pad with zero channels, half of them in front; no parameters.

    Shapes: ``[N, C, H, W] -> [N, C + extra_channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.stride = stride
        self.front, self.back = extra // 2, extra - extra // 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        subsampled = x[:, :, :: self.stride, :: self.stride]
        return F.pad(subsampled, (0, 0, 0, 0, self.front, self.back))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of He et al.: a strided 1x1 convolution and batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut (the identity where the shape stays)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: ShortcutFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else shortcut(in_channels, out_channels, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (every stage but the first halves the image), average pooling, a linear layer.

    Convolutional and linear weights are drawn from the Kaiming normal distribution (fan-in).

    Shapes: ``[N, in_channels, H, W] -> [N, num_classes]`` (logits).

    Args:
        blocks: number of blocks of each stage.
        widths: channels of each stage.
        shortcut: builds the shortcut of a block that changes the shape, from (in_channels, out_channels, stride).
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        InvalidInputError: a size is not a positive integer, or ``blocks`` and ``widths`` differ in length.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int],
        shortcut: ShortcutFactory,
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        validation.counts(in_channels=in_channels, num_classes=num_classes)
        validation.counts(**{f"blocks[{i}]": count for i, count in enumerate(blocks)})
        validation.counts(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        if not widths or len(blocks) != len(widths):
            raise InvalidInputError(f"blocks and widths must name the same stages, got {blocks!r} and {widths!r}")
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = [widths[0], *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                _stage(source, width, count=count, stride=1 if i == 0 else 2, shortcut=shortcut)
                for i, (source, width, count) in enumerate(zip(inputs, widths, blocks, strict=True))
            )
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        self.apply(_initialize)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        features = self.layers(F.relu(self.bn1(self.conv1(x))))
        pooled = F.avg_pool2d(features, features.shape[-2:])
        logits: Tensor = self.fc(pooled.flatten(1))
        return logits


def cifar_resnet(depth: int, *, width: int = 16, in_channels: int = 3, num_classes: int = 10) -> ResNet:
    """ResNet-20, 32, 44, 56 or 110 for 32x32 images: three stages of 16, 32 and 64 channels, option-A shortcuts.

    ResNet-8 and 14, which He et al. do not have, and other widths are for experiments at reduced scale.

    Args:
        depth: 8, 14, 20, 32, 44, 56 or 110 (6n + 2 weight layers, n blocks per stage).
        width: channels of the first stage; the second has twice, the third four times as many.
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        InvalidInputError: the depth is none of these, or a size is not a positive integer.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters())
    269722
    """
    if depth not in CIFAR_DEPTHS:
        raise InvalidInputError(f"depth must be one of {', '.join(map(str, CIFAR_DEPTHS))}, got {depth!r}")
    return ResNet(
        blocks=[(depth - 2) // 6] * 3,
        widths=(width, 2 * width, 4 * width),
        shortcut=PaddedShortcut,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def resnet18(*, in_channels: int = 3, num_classes: int = 10) -> ResNet:
    """ResNet-18 for small images: 3x3 stem without pooling, four stages of 64 to 512 channels, projection shortcuts.

    Raises:
        InvalidInputError: a size is not a positive integer.
    """
    return ResNet(
        blocks=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        shortcut=projection_shortcut,
        in_channels=in_channels,
        num_classes=num_classes,
    )


def _stage(in_channels: int, width: int, *, count: int, stride: int, shortcut: ShortcutFactory) -> nn.Sequential:
    first = BasicBlock(in_channels, width, stride=stride, shortcut=shortcut)
    rest = (BasicBlock(width, width, stride=1, shortcut=shortcut) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
