"""The batch-norm network of the main job: scikit-learn's 8x8 digits with about 5,000 parameters."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation

IMAGE_SIZE = 8


class DigitsCNN(nn.Module):
    """Three blocks of convolution, batch norm and ReLU on 8x8 images; 4,954 parameters by default.

    The maps are 8x8 (averaged to 4x4), 2x2 and 1x1, so that 97 % of the parameters lie in the last two convolutions and
    the linear layer, where one more query costs little: what a coordinate costs is the size of the maps behind it.

    Shapes: ``[N, in_channels, 8, 8] -> [N, num_classes]`` (logits).

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.

    Raises:
        InvalidInputError: an argument is not a positive integer.

    >>> sum(p.numel() for p in DigitsCNN().parameters())
    4954
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10) -> None:
        validation.counts(in_channels=in_channels, num_classes=num_classes)
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, 16, kernel_size=3, padding=1),
            nn.AvgPool2d(2),
            *_block(16, 16, kernel_size=3),
            *_block(16, 32, kernel_size=2),
        )
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Float[Tensor, "b c 8 8"]) -> Float[Tensor, "b classes"]:
        logits: Tensor = self.fc(self.features(x).flatten(1))
        return logits


def _block(in_channels: int, out_channels: int, *, kernel_size: int, padding: int = 0) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
