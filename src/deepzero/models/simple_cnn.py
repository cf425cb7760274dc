"""The depth-adjustable convolutional network on which the paper compares coordinate-wise and random estimates."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

MAX_DEPTH = 5


class SimpleCNN(nn.Module):
    """``depth`` blocks of convolution, batch norm, ReLU and max pooling; then global average pooling and a linear one.

    Every block halves the height and the width, so images must be at least ``2**depth`` pixels high and wide. With the
    default width, the depths 1 to 5 have 730, 3,700, 6,670, 9,640 and 12,610 parameters, the sizes of Fig. 2 in
    Chen et al., "DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training" (ICLR 2024).

    Shapes: ``[N, in_channels, H, W] -> [N, num_classes]`` (logits).

    Args:
        depth: number of blocks, 1 to 5.
        width: channels of every block.
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        InvalidInputError: an argument is not a positive integer, or the depth is above 5.

    >>> [sum(p.numel() for p in SimpleCNN(depth=depth).parameters()) for depth in (1, 2, 3, 4, 5)]
    [730, 3700, 6670, 9640, 12610]
    """

    def __init__(self, *, depth: int = 5, width: int = 18, in_channels: int = 3, num_classes: int = 10) -> None:
        validation.counts(depth=depth, width=width, in_channels=in_channels, num_classes=num_classes)
        if depth > MAX_DEPTH:
            raise InvalidInputError(f"depth must be 1 to {MAX_DEPTH}, got {depth}: each block halves the image")
        super().__init__()
        channels = [in_channels] + [width] * depth
        self.blocks = nn.Sequential(*(_block(*pair) for pair in pairwise(channels)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.fc(self.pool(self.blocks(x)).flatten(1))
        return logits


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
