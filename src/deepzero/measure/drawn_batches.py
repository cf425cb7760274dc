"""Batches for measurements: real digits, noise in the shape of a data set's images, random symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from deepzero import data
from deepzero.errors import InvalidInputError

Batch = tuple[Tensor, Tensor]
"""Images ``[n, channels, side, side]`` and labels ``[n]``; or symbols ``[n, T]`` and those that follow, ``[n * T]``."""

CIFAR10 = (3, 32)


def image_shape(data_name: str) -> tuple[int, int]:
    """Channels and side in pixels of a data set's images.

    >>> image_shape("digits"), image_shape("cifar10")
    ((1, 8), (3, 32))
    """
    return (1, 8) if data_name == "digits" else CIFAR10


def noise_batch(size: int, channels: int = 3, side: int = 32, *, seed: int, device: str = "cpu") -> Batch:
    """Standard normal images with random labels of ten classes: what a query costs depends on shapes alone.

    Args:
        size: images of the batch.
        channels: of an image.
        side: of an image, in pixels.
        seed: of the generator that draws images and labels.
        device: where the batch is moved after it was drawn.

    >>> x, y = noise_batch(4, 3, 8, seed=0)
    >>> x.shape, y.shape, bool((y < 10).all())
    (torch.Size([4, 3, 8, 8]), torch.Size([4]), True)
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, channels, side, side, generator=generator)
    y = torch.randint(10, (size,), generator=generator)
    return x.to(device), y.to(device)


def digits_batch(size: int, *, seed: int) -> Batch:
    """Images of scikit-learn's digits, in an order that is drawn from the seed.

    Raises:
        InvalidInputError: there are fewer images.
    """
    train = data.load("digits", validation=0.0).train
    if size > len(train):
        raise InvalidInputError(f"digits has {len(train)} training images, too few for batch={size}")
    return data.BatchLoader(train, batch_size=size, shuffle=True, seed=seed).batch(0, 0)


def token_batch(size: int, length: int, symbols: int, *, seed: int) -> Batch:
    """Sequences of random symbols, and the symbol that follows each: what a query costs depends on shapes alone.

    >>> x, y = token_batch(2, 5, 100, seed=0)
    >>> x.shape, y.shape, torch.equal(x[0, 1:], y[:4])
    (torch.Size([2, 5]), torch.Size([10]), True)
    """
    drawn = torch.randint(symbols, (size, length + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].flatten()
