"""Data sets in plain values: the named ones, and the contents of a file or folder."""

from __future__ import annotations

import os
from typing import Any

from deepzero.data.dataset import Dataset, Splits
from deepzero.data.dataset_registry import NAMED
from deepzero.errors import DataNotFoundError


def named_sets(data_dir: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Every named set: ``name``, ``summary``, ``found``, ``folder`` and, if it was not found, ``advice``.

    Files are looked for, not read.

    >>> named_sets()[0]["found"]
    True
    """
    return [{"name": name, "summary": one.summary, **_search(name, data_dir)} for name, one in NAMED.items()]


def description(splits: Splits) -> dict[str, Any]:
    """The contents of a data set as values that JSON has.

    Args:
        splits: as :func:`deepzero.data.load` gives them.

    Returns:
        ``inputs`` (``images`` or ``table``), ``shape``, ``values`` (see :class:`~deepzero.data.Preprocessing`),
        ``columns``, ``target``, ``samples`` of each part, ``classes`` with the samples of each part, ``balance`` and
        ``notes``. The balance holds how many times more samples the ``largest`` class has than the ``smallest``, and
        the part of the test set that is right if the largest is always answered (``baseline``).

    >>> from deepzero.data import load
    >>> contents = description(load("digits"))
    >>> contents["shape"], contents["samples"], contents["classes"][3]["train"]
    ([1, 8, 8], {'train': 1295, 'validation': 143, 'test': 359}, 131)
    """
    train = splits.train
    parts = {"train": train, "validation": splits.validation, "test": splits.test}
    counts = {part: dataset.labels.bincount(minlength=train.num_classes).tolist() for part, dataset in parts.items()}
    record = train.preprocessing
    return {
        "inputs": record.kind,
        "shape": list(record.input_shape),
        "values": record.values,
        "columns": list(record.column_names),
        "target": record.target,
        "samples": {part: len(dataset) for part, dataset in parts.items()},
        "classes": [
            {"name": name, **{part: numbers[label] for part, numbers in counts.items()}}
            for label, name in enumerate(train.class_names)
        ],
        "balance": _balance(
            train.class_names, [sum(numbers) for numbers in zip(*counts.values(), strict=True)], splits.test
        ),
        "notes": list(splits.notes),
    }


def _search(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, Any]:
    find = NAMED[name].find
    if find is None:
        return {"found": True, "folder": None}
    try:
        return {"found": True, "folder": str(find(data_dir).absolute())}
    except DataNotFoundError as error:
        return {"found": False, "folder": None, "advice": str(error)}


def _balance(names: tuple[str, ...], counts: list[int], test: Dataset) -> dict[str, Any]:
    largest, smallest = (choose(range(len(counts)), key=counts.__getitem__) for choose in (max, min))
    return {
        "largest": names[largest],
        "smallest": names[smallest],
        "ratio": counts[largest] / counts[smallest] if counts[smallest] else None,
        "baseline": int((test.labels == largest).sum()) / len(test),
    }
