"""The labelled data of a task: read once, in batches to train on, and in batches to score a model by."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from deepzero import data
from deepzero.announce import announced
from deepzero.losses import LOSSES
from deepzero.tasks.task_config import DataConfig
from deepzero.training import evaluate

EVALUATION_BATCH = 500

log = logging.getLogger("deepzero")


def read_data(config: DataConfig, data_dir: str | Path | None = None) -> data.Splits:
    """Images or a table; the log gets a line for every choice that a rule made while they were read.

    Args:
        config: of the data.
        data_dir: folder of the files of a named set, see :func:`deepzero.data.load`.

    Raises:
        DataNotFoundError: the data set is not there.
    """
    with announced(f"reading {config.title}"):
        splits = data.load(
            config.name,
            path=config.path,
            data_dir=data_dir,
            validation=config.validation,
            test=config.test,
            target=config.target,
            image_size=config.image_size,
            limit=config.limit,
        )
    for note in splits.notes:
        log.info("%s", note)
    return splits


@dataclass(frozen=True)
class DataReader:
    """Reads data sets, each once, and keeps them.

    Attributes:
        data_dir: folder of the files of named sets, see :func:`deepzero.data.load`.

    >>> reader, config = DataReader(), DataConfig(name="digits", limit=64)
    >>> reader.known(config) is None, reader.read(config) is reader.read(config)
    (True, True)
    """

    data_dir: str | Path | None = None
    _splits: dict[DataConfig, data.Splits] = field(default_factory=dict, repr=False)

    def read(self, config: DataConfig) -> data.Splits:
        """The data of a configuration; those that differ in their batches alone are the same."""
        key = _without_batches(config)
        if key not in self._splits:
            self._splits[key] = read_data(config, self.data_dir)
        return self._splits[key]

    def known(self, config: DataConfig) -> data.Splits | None:
        """The data if they have been read; None if not."""
        return self._splits.get(_without_batches(config))


def _without_batches(config: DataConfig) -> DataConfig:
    return replace(config, batch_size=1, padding=0, flip=False, drop_last=False)


def training_batches(
    config: DataConfig, train_set: data.Dataset, *, seed: int, device: torch.device
) -> data.BatchLoader:
    """Shuffled and augmented batches."""
    augments = config.padding > 0 or config.flip
    return data.BatchLoader(
        train_set,
        batch_size=config.batch_size,
        shuffle=True,
        augmentation=data.Augmentation(padding=config.padding, flip=config.flip) if augments else None,
        drop_last=config.drop_last,
        seed=seed,
        device=device,
    )


class Scorer:
    """Scores a model on a data set: accuracy and mean loss, by the names of :class:`deepzero.training.Scores`.

    Args:
        dataset: to be scored on.
        loss: a name in :data:`deepzero.losses.LOSSES`.
        device: of the model.
    """

    def __init__(self, dataset: data.Dataset, loss: str, device: torch.device) -> None:
        self._batches = data.BatchLoader(dataset, batch_size=EVALUATION_BATCH, device=device)
        self._loss = LOSSES[loss]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The scores of a model as it is."""
        return asdict(evaluate(model, self._batches.iterate(), self._loss))
