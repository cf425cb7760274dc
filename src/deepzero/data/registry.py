"""Data sets by name, for recipes and the command line."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from deepzero.data.cifar10 import load_cifar10
from deepzero.data.dataset import Dataset, Splits, check_fraction, split
from deepzero.data.digits import load_digits
from deepzero.data.fashion_mnist import load_fashion_mnist
from deepzero.data.folder import load_image_folder
from deepzero.data.images import resize
from deepzero.errors import InvalidInputError

Loader = Callable[[str | os.PathLike[str] | None], tuple[Dataset, Dataset]]

_LOADERS: dict[str, Loader] = {
    "digits": lambda _data_dir: load_digits(),
    "cifar10": load_cifar10,
    "fashion-mnist": load_fashion_mnist,
    "image-folder": load_image_folder,
}


def names() -> tuple[str, ...]:
    """The names that :func:`load` knows.

    >>> names()
    ('digits', 'cifar10', 'fashion-mnist', 'image-folder')
    """
    return tuple(_LOADERS)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    limit: int | None = None,
) -> Splits:
    """Load a data set and hold out a stratified validation set of its training images.

    Args:
        name: one of :func:`names`.
        data_dir: folder of the files; by default ``$DEEPZERO_DATA/<name>``, else ``./data/<name>``. Not used by digits.
        validation: part of each class of the training images to hold out, in [0, 1); 0 leaves validation empty.
        seed: seed of that draw.
        image_size: average the images over tiles down to this height and width; None for the original size.
        limit: keep only the first so many training images, for runs at reduced scale; validation and test stay whole.

    Raises:
        InvalidInputError: an argument is outside its domain, or a file is truncated or corrupt.
        DataNotFoundError: the files are not there; the message says where to get them.

    >>> splits = load("digits", limit=1000)
    >>> len(splits.train), len(splits.validation), len(splits.test)
    (1000, 143, 359)
    """
    if name not in _LOADERS:
        raise InvalidInputError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidInputError(f"limit must be an integer of at least 1, or None for all images, got {limit!r}")
    check_fraction(validation)
    train, test = _LOADERS[name](data_dir)
    if image_size is not None:
        train, test = resize(train, test, image_size)
    train, held_out = split(train, validation, seed=seed)
    if limit is not None:
        train = train.subset(torch.arange(min(limit, len(train))))
    return Splits(train=train, validation=held_out, test=test)
