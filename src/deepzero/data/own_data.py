"""The contents of a file or a folder of one's own, and the three sets that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Real
from torch import Tensor

from deepzero.data.dataset import Dataset, Splits, generator, split
from deepzero.data.images import downsample, statistics
from deepzero.data.labels import classes_of
from deepzero.errors import InvalidInputError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
TEST_FRACTION = 0.2
TEST_SEED = 0  # the test set of a file is always the same one
LIMIT = 1  # what a random stream is for


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """Inputs, and one label for each, as found.

    Attributes:
        inputs: images ``[n, c, h, w]`` or rows ``[n, c]``.
        labels: whole numbers, truth values or texts.
    """

    inputs: Real[Tensor, "n ..."]
    labels: npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Contents:
    """The contents of a file or folder.

    Attributes:
        parts: the training set first; a validation and a test set if there are some.
        labels: name of the labels in messages.
        class_names: of the labels, which are then int64 numbers from 0; None to number the different labels.
        fields: of :class:`~deepzero.data.Dataset`, that are the same for all parts.
        notes: sentences that say what was decided by a rule.
    """

    parts: Mapping[str, Samples]
    labels: str
    class_names: tuple[str, ...] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def splits_of(
    found: Contents,
    *,
    name: str,
    validation: float,
    test: float | None,
    seed: int,
    image_size: int | None,
    limit: int | None,
) -> Splits:
    """Training, validation and test set; see :func:`deepzero.data.load`.

    Raises:
        InvalidInputError: an option has no effect here, or the labels are no classes.
    """
    found = averaged(found, image_size)
    if test is not None and TEST in found.parts:
        raise InvalidInputError(f"{name!r} has a test set of its own, so test={test} has no effect; leave it out")
    fraction = TEST_FRACTION if test is None else test
    if not 0 < fraction < 1:
        raise InvalidInputError(
            f"test, the part of each class to hold out, must be in (0, 1), got {test!r}; 0.2 is usual"
        )
    sets, notes = _datasets(found, name), list(found.notes)
    if TEST not in sets:
        sets[TRAIN], sets[TEST] = split(sets[TRAIN], fraction, seed=TEST_SEED)
        notes.append(f"{fraction:.0%} of every class, {len(sets[TEST])} samples, are held out as the test set")
        if not len(sets[TEST]):
            raise InvalidInputError(
                f"{name!r} has too few samples to hold out {fraction:.0%} of a class for the test; add some, or choose "
                "a larger part (test=0.5)"
            )
    mean, std, constant = statistics(sets[TRAIN].inputs, scale=sets[TRAIN].scale)
    if constant:
        notes.append(f"{_channels(sets[TRAIN], constant)} never change; they are left at 0")
    sets = {part: replace(dataset, mean=mean, std=std) for part, dataset in sets.items()}
    train, held_out = sets[TRAIN], sets.get(VALIDATION)
    if held_out is None:
        train, held_out = split(train, validation, seed=seed)
    if limit is not None and limit < len(train):
        train = train.subset(torch.randperm(len(train), generator=generator(seed, LIMIT))[:limit].sort().values)
    return Splits(train=train, validation=held_out, test=sets[TEST], notes=tuple(notes))


def averaged(found: Contents, image_size: int | None) -> Contents:
    """Its images averaged over tiles down to ``image_size``, unless they have that size."""
    inputs = found.parts[TRAIN].inputs
    if image_size is None or inputs.shape[2:] == (image_size, image_size):
        return found
    if inputs.dim() != 4:
        raise InvalidInputError(f"{found.labels}: a table has no image_size; leave it out, got image_size={image_size}")
    tile = inputs.shape[-1] // max(image_size, 1)
    parts = {
        part: replace(samples, inputs=downsample(samples.inputs, image_size)) for part, samples in found.parts.items()
    }
    return replace(found, parts=parts, fields={**found.fields, "tile": tile})


def _datasets(found: Contents, name: str) -> dict[str, Dataset]:
    """The parts, not normalized yet."""
    for part, samples in found.parts.items():
        if len(samples.inputs) != len(samples.labels):
            raise InvalidInputError(
                f"{found.labels}: {len(samples.inputs)} inputs but {len(samples.labels)} labels in the {part} part; "
                "there must be one label for each"
            )
    labels = {part: samples.labels for part, samples in found.parts.items()}
    if found.class_names is None:
        numbers, classes = classes_of(labels, what=found.labels)
    else:
        numbers = {part: torch.from_numpy(values).long() for part, values in labels.items()}
        classes = found.class_names
    channels = found.parts[TRAIN].inputs.shape[1]
    return {
        part: Dataset(
            inputs=samples.inputs,
            labels=numbers[part],
            num_classes=len(classes),
            class_names=classes,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            name=name,
            **found.fields,
        )
        for part, samples in found.parts.items()
    }


def _channels(dataset: Dataset, numbers: list[int]) -> str:
    names = [dataset.column_names[i] if dataset.column_names else str(i) for i in numbers[:5]]
    more = ", ..." if len(numbers) > 5 else ""
    return f"{'columns' if dataset.inputs.dim() == 2 else 'channels'} {', '.join(names)}{more}"
