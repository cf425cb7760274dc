"""What measurements look at: images of a data set's shape, or noise in their place."""

from __future__ import annotations

import torch
from torch import Tensor

from deepzero.randomness import derive_seed


def image_shape(data_name: str) -> tuple[int, int]:
    """Channels and side in pixels.

    >>> image_shape("digits"), image_shape("cifar10")
    ((1, 8), (3, 32))
    """
    return (1, 8) if data_name == "digits" else (3, 32)


def noise(batch_size: int, channels: int, size: int, *, device: str) -> tuple[Tensor, Tensor]:
    """Standard normal images with random labels of ten classes.

    >>> x, y = noise(4, 3, 8, device="cpu")
    >>> x.shape, y.shape, bool((y < 10).all())
    (torch.Size([4, 3, 8, 8]), torch.Size([4]), True)
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "noise"))
    x = torch.randn(batch_size, channels, size, size, generator=generator)
    y = torch.randint(10, (batch_size,), generator=generator)
    return x.to(device), y.to(device)
