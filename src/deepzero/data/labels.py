"""Labels as people write them, as classes numbered from 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

from deepzero.errors import InvalidInputError

FEW_CLASSES, FEW_SAMPLES = 20, 5
"""More classes than the first, with fewer samples each than the second, are taken for measurements or identifiers."""

Array = npt.NDArray[Any]


def classes_of(labels: Mapping[str, Array], *, what: str) -> tuple[dict[str, Int64[Tensor, " n"]], tuple[str, ...]]:
    """Labels as numbers from 0, and the names of the classes: numbers in their order, texts in alphabetical order.

    Args:
        labels: of the parts of a set, the training part first; whole numbers of at least 0, truth values, or texts.
        what: the labels' name in messages, such as ``"column 'label' of iris.csv"``.

    Raises:
        InvalidInputError: a label is missing, negative, fractional or not a class of the training part; labels are
            one-hot; there are too many classes or a single one. The message says what to type.

    >>> classes_of({"train": np.array(["no", "yes", "no"])}, what="y")
    ({'train': tensor([0, 1, 0])}, ('no', 'yes'))
    """
    plain = {
        part: _plain(values, what if part == "train" else f"{what}, {part} part") for part, values in labels.items()
    }
    train = next(iter(plain.values()))
    known, counts = np.unique(train, return_counts=True)
    if len(known) == 1:
        raise InvalidInputError(
            f"{what} holds one class only, {known[0]}; at least two are needed: name another column by target=..."
        )
    if len(known) > FEW_CLASSES and counts.mean() < FEW_SAMPLES:
        raise InvalidInputError(
            f"{what} has {len(known)} different values in {len(train)} samples: measurements or identifiers, not "
            "classes; choose another target, or make classes of it, for example with pandas.cut"
        )
    for part, values in plain.items():
        if len(odd := np.setdiff1d(values, known)):
            raise InvalidInputError(f"{what}: the {part} part holds classes that the training part has not: {odd[:5]}")
    numbers = {part: torch.from_numpy(np.searchsorted(known, values)).long() for part, values in plain.items()}
    return numbers, tuple(map(str, known))


def _plain(values: Array, what: str) -> Array:
    """Whole numbers or texts, one for each sample."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InvalidInputError(
            f"{what} must be one label for each sample, got shape {list(values.shape)}"
            + ("; these are one-hot vectors: type y.argmax(axis=1)" if _is_one_hot(values) else "")
        )
    if values.dtype.kind == "f":
        values = _whole(values, what)
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind in "iu":
        if len(values) and values.min() < 0:
            raise InvalidInputError(
                f"{what} holds the negative label {values.min()}; classes are numbers from 0, or texts. Take away "
                "samples without a label, or type y - y.min() if it is a class"
            )
        return values.astype(np.int64)
    if values.dtype.kind != "U":
        raise InvalidInputError(f"{what} must hold whole numbers or texts, got {values.dtype}")
    if len(missing := np.flatnonzero(np.char.strip(values) == "")):
        raise InvalidInputError(f"{what}: {len(missing)} labels are missing, the first in row {missing[0]}")
    return values


def _whole(values: Array, what: str) -> Array:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InvalidInputError(f"{what}: {len(bad)} labels are missing or infinite, the first in row {bad[0]}")
    fractional = np.flatnonzero(values != np.floor(values))
    if len(fractional):
        raise InvalidInputError(
            f"{what} is continuous: {values[fractional[0]]} in row {fractional[0]} is no class. Classes are needed: "
            "whole numbers or texts; make some, for example with pandas.cut"
        )
    return values.astype(np.int64)


def _is_one_hot(values: Array) -> bool:
    return values.ndim == 2 and values.dtype.kind in "biuf" and bool(((values != 0).sum(1) == 1).all())
