"""Labelled images or rows of a table in memory, and their division into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from deepzero.data.preprocessing import IMAGES, TABLE, Preprocessing
from deepzero.data.raw_images import BYTES, FRACTIONS, REALS
from deepzero.errors import InvalidInputError


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Labelled inputs, images or rows of a table, with the constants that normalize them.

    A network sees ``(inputs / scale - mean) / std``, channel by channel; the columns of a table are its channels.

    Attributes:
        inputs: n images of c channels, h rows and w columns, in units of ``1 / scale``; or n rows of c numbers.
        labels: from 0 to ``num_classes - 1``.
        num_classes: number of classes.
        mean: mean of each channel, in units of ``scale``.
        std: standard deviation of each channel, in units of ``scale``.
        name: of the set, in messages and run records.
        scale: the value that stands for 1 (white).
        class_names: of the labels 0, 1, ...; these numbers by default.
        column_names: of a table; empty if its columns have none.
        target: the column of a table that the labels are from; None if it has no name.
        fractions: the images are floating-point numbers from 0 (black) to ``scale`` (white).
        shorter_side: an image file's shorter side is brought to this number of pixels before the middle is cut out;
            None where images had their size from the start.
        tile: the side of the tiles, in pixels, that images were averaged over.

    Raises:
        InvalidInputError: a field has another type, shape or range than stated above.

    >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    >>> dataset = Dataset(
    ...     inputs=images, labels=torch.tensor([0, 1, 2, 1]), num_classes=3, mean=(0.5,), std=(0.25,), name="blank"
    ... )
    >>> len(dataset), dataset.image_shape, dataset.class_names
    (4, (1, 8, 8), ('0', '1', '2'))
    """

    inputs: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n c h w"] | Float32[Tensor, "n c"] | Float64[Tensor, "n c"]
    labels: Int64[Tensor, " n"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    scale: float = 255.0
    class_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    target: str | None = None
    fractions: bool = False
    shorter_side: int | None = None
    tile: int = 1

    def __post_init__(self) -> None:
        _check_inputs(self)
        _check_normalization(self)
        _check_labels(self)
        object.__setattr__(self, "class_names", self.class_names or tuple(map(str, range(self.num_classes))))
        _check_names(self)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image; the number of columns of a table."""
        return tuple(self.inputs.shape[1:])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image.

        Raises:
            InvalidInputError: the set is a table.
        """
        if self.inputs.dim() != 4:
            raise InvalidInputError(
                f"images are needed here, but {self.name!r} is a table of {self.inputs.shape[1]} columns; "
                "choose a set of images, or a network that takes tables (mlp)"
            )
        channels, height, width = self.inputs.shape[1:]
        return channels, height, width

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that makes such inputs out of image files, arrays or tables."""
        images = self.inputs.dim() == 4
        values = BYTES if self.inputs.dtype == torch.uint8 else FRACTIONS if self.fractions else REALS
        return Preprocessing(
            kind=IMAGES if images else TABLE,
            input_shape=self.input_shape,
            values=values,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            shorter_side=self.shorter_side,
            tile=self.tile,
            class_names=self.class_names,
            column_names=self.column_names,
            target=self.target,
        )

    def subset(self, indices: Int64[Tensor, " m"]) -> Dataset:
        """The samples at ``indices``, in that order."""
        return replace(self, inputs=self.inputs[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Three disjoint sets: one to train on, one to select models by, and one to be looked at once, at the end.

    Attributes:
        train: the samples that a network is trained on.
        validation: held out of the training set; empty if nothing was asked for.
        test: the samples that it is scored by.
        notes: sentences that say what was decided by a rule when a file or folder was read.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()


def generator(*address: int) -> torch.Generator:
    """A CPU generator whose state is a function of the non-negative integers in ``address`` alone.

    Raises:
        InvalidInputError: a number of the address is negative or not an integer.

    >>> first = torch.rand(2, generator=generator(0, 1))
    >>> torch.equal(first, torch.rand(2, generator=generator(0, 1)))
    True
    >>> torch.equal(first, torch.rand(2, generator=generator(1, 0)))
    False
    """
    for number in address:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidInputError(f"seeds and positions must be integers of at least 0, got {number!r}")
    seed = np.random.SeedSequence(address).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def split(dataset: Dataset, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold out ``fraction`` of every class, drawn at random; both parts keep the order of the samples.

    Args:
        dataset: the set to divide.
        fraction: part of each class to hold out, in [0, 1); each class count is rounded to the nearest integer.
        seed: seed of the draw.

    Returns:
        The rest, and the part held out.

    Raises:
        InvalidInputError: the fraction is outside [0, 1), or the seed is negative.

    >>> images, labels = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    >>> dataset = Dataset(inputs=images, labels=labels, num_classes=2, mean=(0.0,), std=(1.0,), name="blank", scale=1.0)
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


def _check_inputs(dataset: Dataset) -> None:
    inputs = dataset.inputs
    kinds = {4: (torch.uint8, torch.float32), 2: (torch.float32, torch.float64)}
    if inputs.dtype not in kinds.get(inputs.dim(), ()):
        raise InvalidInputError(
            f"inputs of {dataset.name!r} must be images, a uint8 or float32 tensor of shape [N, C, H, W], or a table, "
            f"a float32 or float64 tensor of shape [N, C]; got {inputs.dtype} of shape {list(inputs.shape)}"
        )
    if inputs.is_floating_point() and not inputs.isfinite().all():
        raise InvalidInputError(f"inputs of {dataset.name!r} must be finite, got NaN or infinity")


def _check_normalization(dataset: Dataset) -> None:
    channels = dataset.inputs.shape[1]
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
    labels, count = dataset.labels, len(dataset.inputs)
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


def _check_names(dataset: Dataset) -> None:
    expected = {"class_names": dataset.num_classes, "column_names": dataset.inputs.shape[1]}
    for field, count in expected.items():
        names = getattr(dataset, field)
        if names and (len(names) != count or len(set(names)) != count):
            raise InvalidInputError(f"{field} of {dataset.name!r} must be {count} different names, got {names!r}")
    if dataset.column_names and dataset.inputs.dim() == 4:
        raise InvalidInputError(f"{dataset.name!r} holds images, which have no column_names")
