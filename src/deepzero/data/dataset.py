"""Labelled images in memory, and their division into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from deepzero.data.seeding import generator
from deepzero.errors import InvalidInputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Labelled images with the constants that normalize them.

    A network sees ``(images / scale - mean) / std``, channel by channel.

    Attributes:
        images: n images of c channels, h rows and w columns, in units of ``1 / scale``.
        labels: from 0 to ``num_classes - 1``.
        num_classes: number of classes.
        mean: mean of each channel, in units of ``scale``.
        std: standard deviation of each channel, in units of ``scale``.
        name: what messages and run records call the set.
        scale: the pixel value that stands for 1 (white).

    Raises:
        InvalidInputError: a field has another type, shape or range than stated above.

    >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> dataset = Dataset(
    ...     images=images, labels=torch.tensor([0, 1, 2, 1]), num_classes=3, mean=(0.5,), std=(0.25,), name="blank"
    ... )
    >>> len(dataset), dataset.image_shape
    (4, (1, 8, 8))
    """

    images: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    scale: float = 255.0

    def __post_init__(self) -> None:
        _check_images(self)
        _check_normalization(self)
        _check_labels(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Int64[Tensor, " m"]) -> Dataset:
        """The images at ``indices``, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Three disjoint sets: one to train on, one to select models by, and one to be looked at once, at the end.

    Attributes:
        train: training images.
        validation: images held out of the training images; empty if none were asked for.
        test: test images.
    """

    train: Dataset
    validation: Dataset
    test: Dataset


def split(dataset: Dataset, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold out ``fraction`` of every class, drawn at random; both parts keep the order of the images.

    Args:
        dataset: what to divide.
        fraction: part of each class to hold out, in [0, 1); each class count is rounded to the nearest integer.
        seed: seed of the draw.

    Returns:
        The rest, and the part held out.

    Raises:
        InvalidInputError: the fraction is outside [0, 1), or the seed is negative.

    >>> images, labels = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    >>> dataset = Dataset(images=images, labels=labels, num_classes=2, mean=(0.0,), std=(1.0,), name="blank", scale=1.0)
    >>> rest, held_out = split(dataset, 0.3)
    >>> held_out.labels.bincount()
    tensor([3, 3])
    """
    check_fraction(fraction)
    draw = generator(seed)
    held_out = torch.zeros(len(dataset), dtype=torch.bool)
    for label in range(dataset.num_classes):
        members = torch.nonzero(dataset.labels == label).squeeze(1)
        order = torch.randperm(len(members), generator=draw)
        held_out[members[order[: round(fraction * len(members))]]] = True
    return dataset.subset(torch.nonzero(~held_out).squeeze(1)), dataset.subset(torch.nonzero(held_out).squeeze(1))


def check_fraction(fraction: float) -> None:
    """Raise :class:`~deepzero.errors.InvalidInputError` unless ``fraction`` can be held out: a number in [0, 1)."""
    if not 0 <= fraction < 1:
        raise InvalidInputError(f"the fraction to hold out must be in [0, 1), got {fraction!r}; 0.1 is usual")


def _check_images(dataset: Dataset) -> None:
    images = dataset.images
    if images.dim() != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise InvalidInputError(
            f"images of {dataset.name!r} must be a uint8 or float32 tensor of shape [N, C, H, W], "
            f"got {images.dtype} of shape {list(images.shape)}"
        )
    if images.is_floating_point() and not images.isfinite().all():
        raise InvalidInputError(f"images of {dataset.name!r} must be finite, got NaN or infinity")


def _check_normalization(dataset: Dataset) -> None:
    channels = dataset.images.shape[1]
    if len(dataset.mean) != channels or len(dataset.std) != channels:
        raise InvalidInputError(
            f"mean and std of {dataset.name!r} must have one value for each of {channels} channels, "
            f"got {dataset.mean!r} and {dataset.std!r}"
        )
    if not all(std > 0 for std in dataset.std) or not dataset.scale > 0:
        raise InvalidInputError(
            f"std and scale of {dataset.name!r} must be positive, got {dataset.std!r}, {dataset.scale!r}"
        )


def _check_labels(dataset: Dataset) -> None:
    labels, count = dataset.labels, len(dataset.images)
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InvalidInputError(
            f"labels of {dataset.name!r} must be an int64 tensor of shape [{count}], "
            f"got {labels.dtype} of shape {list(labels.shape)}"
        )
    outside = torch.nonzero((labels < 0) | (labels >= dataset.num_classes)).squeeze(1)
    if len(outside):
        index = int(outside[0])
        raise InvalidInputError(
            f"labels of {dataset.name!r} must be 0 to {dataset.num_classes - 1}; {len(outside)} are not, "
            f"the first is {int(labels[index])} at index {index}; count classes from 0, or raise num_classes"
        )
