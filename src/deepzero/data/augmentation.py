"""Random crops and flips of a whole batch at once, on the device that holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from deepzero.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Pad with zeros, cut a window of the original size at random, and flip half of the images left to right.

    Attributes:
        padding: pixels added on each side before the crop; 0 for no crop.
        flip: whether to flip.

    Raises:
        InvalidInputError: the padding is not an integer of at least 0.

    >>> images = torch.arange(18).reshape(2, 1, 3, 3)
    >>> Augmentation(padding=0, flip=True)(images, torch.Generator().manual_seed(4))[:, 0, 0]
    tensor([[ 2,  1,  0],
            [ 9, 10, 11]])
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 0:
            raise InvalidInputError(f"padding must be an integer of at least 0, got {self.padding!r}")

    def __call__(self, images: Shaped[Tensor, "n c h w"], generator: torch.Generator) -> Shaped[Tensor, "n c h w"]:
        """Augment ``images`` of any type and on any device; the CPU ``generator`` decides the rest."""
        count, channels, height, width = images.shape
        tops, lefts, flips = self._draw(count, generator)
        rows = tops[:, None] + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        columns = lefts[:, None] + torch.where(flips[:, None], columns.flip(1), columns)
        padded = F.pad(images, (self.padding,) * 4)
        device = images.device
        return padded[
            torch.arange(count, device=device)[:, None, None, None],
            torch.arange(channels, device=device)[:, None, None],
            rows.to(device)[:, None, :, None],
            columns.to(device)[:, None, None, :],
        ]

    def _draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Bool[Tensor, " n"]]:
        """Top and left corner of each window and whether to flip it."""
        offsets = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        flips = torch.randint(2, (count,), generator=generator).bool() & self.flip
        return offsets[0], offsets[1], flips
