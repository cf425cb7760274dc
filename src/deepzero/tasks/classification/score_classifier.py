"""Loss and accuracy of the network of a finished run: on its own test set, or on other labelled data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from deepzero import data
from deepzero.data import Dataset, Preprocessing
from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.run import BATCH, Run
from deepzero.tasks.classification.classification_config import from_record
from deepzero.tasks.task_data import read_data
from deepzero.training.run_folder import settings_from


@dataclass(frozen=True)
class Scored:
    """Scores of a network.

    Attributes:
        scores: numbers by name.
        samples: that they are means over.
        title: of the samples, in words.
    """

    scores: dict[str, float]
    samples: int
    title: str


def score_run(
    run: Run, word: str | None = None, *, target: str | None = None, data_dir: str | Path | None = None
) -> Scored:
    """Loss and accuracy of a run's network.

    Args:
        run: of a classifier.
        word: a file or folder with labelled data, all of which counts, or the name of a data set, whose test set
            counts; None: the test set of the run's own data.
        target: the column of a table that holds the classes.
        data_dir: folder of the files of a named set.

    Raises:
        InvalidInputError: the data do not fit the network; the message says in what.
        DataNotFoundError: they are not there.
        RunFolderError: the run has no data of its own.
    """
    if word is None:
        if "data" not in run.config:
            raise RunFolderError(
                f"the run in {run.folder} does not say what its data are; give --data PATH, or in Python "
                "run.evaluate((x, y), loss=...)"
            )
        with settings_from(run.folder):
            config = from_record(run.config)
        return _scored(run, read_data(config.data, data_dir).test, f"the test set of {config.data.title}")
    if run.preprocessing is None or run.classes is None:
        raise InvalidInputError(
            f"the run in {run.folder} does not say how raw data become inputs of its network; in Python: "
            "run.evaluate((x, y), loss=...)"
        )
    if word in data.names() and not Path(word).exists():
        return _scored(run, data.load(word, data_dir=data_dir, validation=0.0).test, f"the test set of {word}")
    size = run.preprocessing.input_shape[1] if run.preprocessing.shorter_side is not None else None
    splits = data.load(data.detect(word), path=word, target=target, image_size=size, validation=0.0)
    return _scored(run, _joined(splits), Path(word).name)


def _joined(splits: data.Splits) -> Dataset:
    """All labelled samples."""
    train, test = splits.train, splits.test
    inputs, labels = torch.cat([train.inputs, test.inputs]), torch.cat([train.labels, test.labels])
    return replace(train, inputs=inputs, labels=labels)


def _scored(run: Run, dataset: Dataset, title: str) -> Scored:
    if run.preprocessing is None or run.classes is None:
        raise InvalidInputError(f"the run in {run.folder} does not say how raw data become inputs of its network")
    inputs = run.preprocessing.normalize(_fitting(dataset, run.preprocessing, title))
    batches = DataLoader(TensorDataset(inputs, _labels(dataset, run.classes, title)), batch_size=BATCH)
    return Scored(run.evaluate(batches), len(dataset), title)


def _fitting(dataset: Dataset, trained_on: Preprocessing, title: str) -> Tensor:
    """The inputs of a data set, if they are in the form that the network was trained on; columns in its order."""
    own = dataset.preprocessing
    for name in ("kind", "input_shape", "values", "scale", "tile"):
        if (value := getattr(own, name)) != (expected := getattr(trained_on, name)):
            raise InvalidInputError(
                f"{title} does not fit the network: its {name.replace('_', ' ')} is {value!r}, the network was trained "
                f"on {expected!r}; choose data in that form"
            )
    if not trained_on.column_names or own.column_names == trained_on.column_names:
        return dataset.inputs
    if set(own.column_names) != set(trained_on.column_names):
        odd = ", ".join(sorted(set(own.column_names) ^ set(trained_on.column_names)))
        raise InvalidInputError(
            f"{title} has other columns than the network was trained on; only one of them has: {odd}. Give it the "
            f"columns {', '.join(trained_on.column_names)}"
        )
    return dataset.inputs[:, [own.column_names.index(name) for name in trained_on.column_names]]


def _labels(dataset: Dataset, classes: tuple[str, ...], title: str) -> Tensor:
    """Labels in the numbers of the run: classes are the same if their names are."""
    unknown = [name for name in dataset.class_names if name not in classes]
    if unknown:
        raise InvalidInputError(
            f"{title} has classes that the network does not know: {', '.join(unknown[:5])}; it knows "
            f"{', '.join(classes[:10])}"
        )
    return torch.tensor([classes.index(name) for name in dataset.class_names])[dataset.labels]
