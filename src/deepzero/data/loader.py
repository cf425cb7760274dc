"""Batches of a data set that stays on one device, shuffled and augmented there; each is a function of its position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from deepzero import validation
from deepzero.data.dataset import Dataset, generator
from deepzero.data.preprocessing import normalized
from deepzero.errors import InvalidInputError

Batch = tuple[Float[Tensor, "b c h w"] | Float[Tensor, "b c"], Int64[Tensor, " b"]]

ORDER, AUGMENTATION = 0, 1  # what a random stream is for: part of its address


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Pad with zeros, cut a window of the original size at random, and flip half of the images left to right.

    Attributes:
        padding: pixels added on each side before the crop; 0 for no crop.
        flip: flip half of the images.

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
        validation.count("padding", self.padding, minimum=0)

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
        """Top and left corner of each window, and True where it is flipped."""
        offsets = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        flips = torch.randint(2, (count,), generator=generator).bool() & self.flip
        return offsets[0], offsets[1], flips


class BatchLoader:
    """Normalized, shuffled and augmented batches ``(x, y)`` of a data set held on a device.

    There is no state to save: ``iterate(epoch, start=step)`` continues an epoch bitwise where an earlier run left it.
    Randomness is drawn on the CPU, so that all devices get the same batches.

    Args:
        dataset: the images or rows, and labels.
        batch_size: samples of a batch; the last one may have fewer.
        shuffle: draw a new order for every epoch.
        augmentation: random crops and flips of images, drawn for every batch; None for none.
        drop_last: leave out a last batch that is not full.
        seed: seed of the order and of the augmentation, an integer of at least 0.
        device: where the samples and the batches are.
        dtype: floating-point type of x.

    Raises:
        InvalidInputError: an argument is outside its domain, or not even one batch can be formed.

    >>> dataset = Dataset(
    ...     inputs=torch.arange(5.0).reshape(5, 1, 1, 1), labels=torch.arange(5), num_classes=5,
    ...     mean=(2.0,), std=(2.0,), scale=1.0, name="counts",
    ... )
    >>> loader = BatchLoader(dataset, batch_size=2)
    >>> [x.flatten().tolist() for x, y in loader.iterate()]
    [[-1.0, -0.5], [0.0, 0.5], [1.0]]
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        validation.count("batch_size", batch_size)
        if not dtype.is_floating_point:
            raise InvalidInputError(f"dtype must be a floating-point type such as torch.float32, got {dtype}")
        count = len(dataset)
        self._length = count // batch_size if drop_last else math.ceil(count / batch_size)
        if self._length == 0:
            raise InvalidInputError(
                f"{dataset.name!r} has {count} samples here, too few for one batch; choose a smaller batch_size than "
                f"{batch_size}, or more data"
            )
        if augmentation is not None and dataset.inputs.dim() != 4:
            raise InvalidInputError(
                f"{dataset.name!r} is a table, whose rows cannot be cropped or flipped; leave the augmentation out "
                "(padding=0, flip=False)"
            )
        self.dataset, self.batch_size = dataset, batch_size
        self._shuffle, self._augmentation = shuffle, augmentation
        self._seed, self._device, self._dtype = seed, device, dtype
        self._inputs, self._labels = dataset.inputs.to(device), dataset.labels.to(device)
        self._mean, self._std = dataset.preprocessing.constants(dtype, device)
        generator(seed)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch number ``index`` of ``epoch``, both counted from 0.

        Raises:
            InvalidInputError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise InvalidInputError(f"an epoch has the batches 0 to {len(self) - 1}, got {index!r}")
        return self._batch(self._order(epoch), epoch, index)

    def iterate(self, epoch: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """The batches ``start``, ``start + 1``, ... of ``epoch``; none if ``start`` is the length.

        Raises:
            InvalidInputError: ``start`` is outside 0 to the length, or the epoch is negative.
        """
        if not 0 <= start <= len(self):
            raise InvalidInputError(f"start must be 0 to {len(self)}, the batches of an epoch, got {start!r}")
        order = self._order(epoch)
        return (self._batch(order, epoch, index) for index in range(start, len(self)))

    def _order(self, epoch: int) -> Int64[Tensor, " n"]:
        draw = generator(self._seed, epoch, ORDER)
        count = len(self.dataset)
        return torch.randperm(count, generator=draw) if self._shuffle else torch.arange(count)

    def _batch(self, order: Int64[Tensor, " n"], epoch: int, index: int) -> Batch:
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size].to(self._device)
        inputs = self._inputs[chosen]
        if self._augmentation is not None:
            inputs = self._augmentation(inputs, generator(self._seed, epoch, AUGMENTATION, index))
        return normalized(inputs, self._mean, self._std, self._dtype), self._labels[chosen]
