"""Data sets by name or by path, for recipes and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deepzero.data.cifar10 import find_cifar10, load_cifar10
from deepzero.data.dataset import Dataset, Splits, check_fraction, split
from deepzero.data.detection import CIFAR10, CSV, IDX, IMAGE_FOLDER, KINDS, NPZ, PARQUET, detect
from deepzero.data.digits import load_digits
from deepzero.data.fashion_mnist import find_fashion_mnist, load_fashion_mnist
from deepzero.data.idx import read_idx_folder
from deepzero.data.image_folders import find_image_folder, load_image_folder, read_image_folder
from deepzero.data.images import channel_statistics, downsample
from deepzero.data.npz import read_npz
from deepzero.data.own_data import TEST, TRAIN, Contents, Samples, splits_of
from deepzero.data.table import read_table
from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean

Folder = str | os.PathLike[str] | None


@dataclass(frozen=True)
class NamedSet:
    """A data set that has a name.

    Attributes:
        summary: description in a line.
        load: reads training and test set.
        find: the folder of its files, or an error that says where to get them; None if it needs no files.
    """

    summary: str
    load: Callable[[Folder], tuple[Dataset, Dataset]]
    find: Callable[[Folder], Path] | None = None


NAMED: dict[str, NamedSet] = {
    "digits": NamedSet(
        "1,797 handwritten digits, 8x8 gray, 10 classes; comes with scikit-learn", lambda _: load_digits()
    ),
    "cifar10": NamedSet(
        "60,000 photographs, 32x32 color, 10 classes", load_cifar10, lambda folder: find_cifar10(folder)[0][0].parent
    ),
    "fashion-mnist": NamedSet("70,000 clothes, 28x28 gray, 10 classes", load_fashion_mnist, find_fashion_mnist),
    "image-folder": NamedSet(
        "your images, 224x224 color: train/CLASS/*.jpg and test/CLASS/*.jpg",
        load_image_folder,
        lambda folder: find_image_folder(folder)[0].parent,
    ),
}
"""The data sets that have a name, with what :func:`load` makes of it."""


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows.

    >>> names()
    ('digits', 'cifar10', 'fashion-mnist', 'image-folder')
    """
    return tuple(NAMED)


def load(
    name: str | None = None,
    *,
    path: Folder = None,
    data_dir: Folder = None,
    validation: float = 0.1,
    test: float | None = None,
    target: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    limit: int | None = None,
) -> Splits:
    """Load a named data set, or a file or folder of one's own, as training, validation and test set.

    What of one's own can be read, see :func:`detect`: a folder of images with a folder for each class (with ``train``
    and ``test`` or ``val`` above them, or without), an ``.npz`` file, a CSV or Parquet table, IDX files, CIFAR-10. What
    is decided by a rule is said in :attr:`Splits.notes`. Means and standard deviations are those of the
    training images or rows, before validation is held out.

    Args:
        name: one of :func:`names`; with a ``path``, the kind that it must be of, or None to have it detected.
        path: a file or folder of one's own.
        data_dir: folder of the files of a named set; by default ``$DEEPZERO_DATA/<name>``, else ``./data/<name>``.
        validation: part of each class of the training set to hold out, in [0, 1); 0 leaves validation empty. Not used
            if the files have a validation set of their own.
        test: part of each class to hold out as the test set, if the ``path`` has none of its own; 0.2 by default. Which
            samples these are does not depend on the seed.
        target: column of a table with the labels; see :func:`deepzero.data.table.read_table`.
        seed: seed of the draw of validation and limit.
        image_size: height and width of the images: those of a folder are resized and cut; others are averaged over
            tiles. None for their own.
        limit: keep only this number of training samples, for runs at reduced scale; validation and test stay whole. The
            first ones of a named set; drawn at random from a path, whose samples may be in the order of their classes.

    Raises:
        InvalidInputError: an argument is outside its domain or has no effect here, or a file cannot be read.
        DataNotFoundError: the files are not there; the message says where to get them.

    >>> splits = load("digits", limit=1000)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1000, 143, 359)
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidInputError(f"limit must be an integer of at least 1, got {limit!r}; leave it out for all samples")
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise InvalidInputError(
            f"image_size must be an integer of at least 1, got {image_size!r}; leave it out for their own size"
        )
    check_fraction(validation)
    if path is None:
        for option, value in (("test", test), ("target", target)):
            if value is not None:
                raise InvalidInputError(
                    f"{option} is for data of your own (path=...); a named set has its own: leave it out"
                )
        return _load_named(name, data_dir, validation, seed, image_size, limit)
    if data_dir is not None:
        raise InvalidInputError(
            "data_dir is for named sets; path says already where your own data lie: leave data_dir out"
        )
    place = Path(path).expanduser()
    found = _read(place, require_kind(place, name), target, image_size)
    size = None if found.fields.get("shorter_side") else image_size
    return splits_of(
        found, name=place.absolute().name, validation=validation, test=test, seed=seed, image_size=size, limit=limit
    )


def require_kind(path: Path, name: str | None) -> str:
    """The kind of what lies at ``path``, which must be ``name`` if one is given."""
    if name is not None and name not in KINDS:
        raise InvalidInputError(f"the kinds of data of one's own are {', '.join(KINDS)}; got {name!r}")
    kind = detect(path)
    if name not in (None, kind):
        raise InvalidInputError(f"{path} is of the kind {kind}, not {name}")
    return kind


def resize(train: Dataset, test: Dataset, size: int) -> tuple[Dataset, Dataset]:
    """Downsample both sets; averaging lowers the contrast, so the training set's own statistics normalize them.

    Raises:
        InvalidInputError: ``size`` does not divide the height of the images.
    """
    height, width = train.image_shape[1:]
    if (height, width) == (size, size):
        return train, test
    images = downsample(train.inputs, size)
    mean, std = channel_statistics(images, scale=train.scale)
    tile = height // size
    return (
        replace(train, inputs=images, mean=mean, std=std, tile=tile),
        replace(test, inputs=downsample(test.inputs, size), mean=mean, std=std, tile=tile),
    )


def _load_named(
    name: str | None, data_dir: Folder, validation: float, seed: int, image_size: int | None, limit: int | None
) -> Splits:
    if name not in NAMED:
        raise _unknown(name)
    train, test = NAMED[name].load(data_dir)
    if image_size is not None:
        train, test = resize(train, test, image_size)
    train, held_out = split(train, validation, seed=seed)
    if limit is not None:
        train = train.subset(torch.arange(min(limit, len(train))))
    return Splits(train=train, validation=held_out, test=test)


def _unknown(name: str | None) -> InvalidInputError:
    if name is None:
        return InvalidInputError(
            f"name a data set ({', '.join(NAMED)}), or give path=... of a file or folder of your own"
        )
    guess = did_you_mean(name, NAMED, shown=repr)
    hint = f"; to read that file or folder, give path={name!r}" if Path(name).expanduser().exists() else ""
    return InvalidInputError(f"unknown data set {name!r}{guess}; choose one of {', '.join(NAMED)}{hint}")


def _read(path: Path, kind: str, target: str | None, image_size: int | None) -> Contents:
    if kind not in (CSV, PARQUET) and target is not None:
        raise InvalidInputError(
            f"target={target!r} is for tables (CSV, Parquet), but {path} is of the kind {kind}; leave it out"
        )
    if kind in (CSV, PARQUET):
        return read_table(path, target)
    if kind == IMAGE_FOLDER:
        return read_image_folder(path, image_size)
    return {NPZ: read_npz, IDX: read_idx_folder, CIFAR10: _read_cifar10}[kind](path)


def _read_cifar10(path: Path) -> Contents:
    sets = dict(zip((TRAIN, TEST), load_cifar10(path), strict=True))
    return Contents(
        parts={part: Samples(inputs=one.inputs, labels=one.labels.numpy()) for part, one in sets.items()},
        labels=f"the labels in {path}",
        class_names=sets[TRAIN].class_names,
    )
