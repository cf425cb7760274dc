"""Sizes and statistics of sets of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Integer, Real
from torch import Tensor

from deepzero.errors import InvalidInputError

CHUNK = 4096  # images pooled at once: bounds the memory of the wider type they are summed in


def downsample(images: Real[Tensor, "n c h w"], size: int) -> Real[Tensor, "n c {size} {size}"]:
    """Average square images over square tiles, so that they become ``size`` x ``size``.

    Integers are rounded to the nearest, halves up.

    Args:
        images: uint8 or floating point.
        size: new height and width; it must divide theirs.

    Raises:
        InvalidInputError: the images are not square, or ``size`` does not divide their height.

    >>> downsample(torch.tensor([[[[0, 1], [2, 3]]]], dtype=torch.uint8), 1).item()
    2
    """
    height, width = images.shape[-2:]
    sizes = [candidate for candidate in range(1, height + 1) if height % candidate == 0]
    if height != width or size not in sizes:
        raise InvalidInputError(
            f"image_size must divide the size of the square images, {height}x{width} here; "
            f"got {size!r}, choose one of {', '.join(map(str, sizes))}"
        )
    pool = F.avg_pool2d if images.is_floating_point() else _integer_average
    return torch.cat([pool(images[i : i + CHUNK], height // size) for i in range(0, len(images), CHUNK)])


def channel_statistics(images: Real[Tensor, "n c h w"], *, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images``, in units of ``scale``.

    Rounded to four decimals, as such constants are usually given; summed in float64.

    >>> channel_statistics(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), scale=255.0)
    ((0.5,), (0.5,))
    """
    mean, std, constant = statistics(images, scale=scale)
    spread = (0.0 if channel in constant else round(value, 4) for channel, value in enumerate(std))
    return tuple(round(value, 4) for value in mean), tuple(spread)


def statistics(
    inputs: Real[Tensor, "n c ..."], *, scale: float
) -> tuple[tuple[float, ...], tuple[float, ...], list[int]]:
    """Mean and standard deviation of each channel or column in units of ``scale``, and which of them never change.

    Summed in float64. The standard deviation of a channel that never changes is given as 1, so that one can divide by
    it.

    >>> statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), scale=1.0)
    ((2.0, 5.0), (1.0, 1.0), [1])
    """
    mean, std, constant = [], [], []
    for number, channel in enumerate(inputs.unbind(1)):
        values = channel.double() / scale
        mean.append(values.mean().item())
        same = bool((values == values.flatten()[0]).all())
        constant += [number] if same else []
        std.append(1.0 if same else values.std(correction=0).item())
    return tuple(mean), tuple(std), constant


def _integer_average(images: Integer[Tensor, "n c h w"], tile: int) -> Integer[Tensor, "n c h//{tile} w//{tile}"]:
    rows, columns = images.shape[-2] // tile, images.shape[-1] // tile
    tiles = images.reshape(*images.shape[:2], rows, tile, columns, tile)
    sums = tiles.sum(dim=(3, 5), dtype=torch.int32)
    return ((2 * sums + tile**2) // (2 * tile**2)).to(images.dtype)
