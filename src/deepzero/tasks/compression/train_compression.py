"""A compression from its data to the error on the test set: one stage of training by function values."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from deepzero import data
from deepzero.estimator import CGE, RGE, Estimator
from deepzero.files import json_object
from deepzero.models import MLP
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.tasks.compression.compression_config import CompressionConfig, from_record
from deepzero.tasks.staged_run import Stage, StagedRun, concluded, existing_run, new_run
from deepzero.tasks.task_config import StageConfig
from deepzero.tasks.task_data import read_data, training_batches
from deepzero.training import RunFolder, StopRequest, read_record, require_made_by
from deepzero.training.checkpoint_contents import snapshot
from deepzero.training.evaluation import eval_mode
from deepzero.training.run_folder import SUMMARY

TRAINING = "training"
"""Folder of the stage, in that of the run."""
CPU = torch.device("cpu")


def compress(
    config: CompressionConfig,
    *,
    out: str | Path,
    resume: bool = False,
    data_dir: str | Path | None = None,
    max_seconds: float | None = None,
    console: Console | None = None,
) -> StagedRun:
    """Train a network with a narrow hidden layer to give its input back.

    Args:
        config: all that the result depends on.
        out: a folder that is empty or not there; with ``resume``, that of a run with the same ``config``.
        resume: go on with an interrupted run.
        data_dir: folder of the data set.
        max_seconds: stop after about that time, with everything saved.
        console: for progress; None to be silent.

    Raises:
        DataNotFoundError: the data set is not there.
        RunFolderError: the folder holds another run.
    """
    path, record = Path(out), {"compression": asdict(config)}
    run = existing_run(path, config=record, resume=resume)
    splits = read_data(config.data, data_dir)
    run = run or new_run(path, config=record)
    if (summary := run.read_summary()) is not None:
        return StagedRun(path, summary)
    with StopRequest(max_seconds=max_seconds) as stop:
        return concluded(run, _Compression(config, splits, run, stop, console).result)


def settings_of(folder: Path) -> CompressionConfig:
    """The configuration of a run.

    Raises:
        RunFolderError: the folder holds no compression.
    """
    record = read_record(folder)
    require_made_by(folder, record, "compress")
    return from_record(record["config"]["compression"])


@dataclass(frozen=True)
class InputsAsTargets:
    """Batches whose targets are their inputs, as rows; a pure function of the position.

    Attributes:
        labelled: the batches of the training set; the next pass over it begins where one ends.
        steps: batches of the stage.
    """

    labelled: data.BatchLoader
    steps: int

    def __len__(self) -> int:
        return self.steps

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[b, ...]`` and the same ``[b, n]``."""
        turn, position = divmod(epoch * self.steps + index, len(self.labelled))
        x, _ = self.labelled.batch(turn, position)
        return x, x.flatten(1)


@dataclass(frozen=True)
class _Compression:
    """The training and the test of a run."""

    config: CompressionConfig
    splits: data.Splits
    run: RunFolder
    stop: StopRequest
    console: Console | None

    def result(self) -> dict[str, Any]:
        """Train, test, and return their part of the summary."""
        started, config = time.perf_counter(), self.config
        network = bottleneck(self.splits.train.input_shape, config.code, config.seed)
        training = self.run.path / TRAINING
        Stage(
            folder=training,
            settings={"config": asdict(config)},
            config=StageConfig(
                learning_rate=config.learning_rate,
                batch_size=config.data.batch_size,
                steps=config.steps,
                schedule=config.schedule,
            ),
            model=network,
            source=estimator(network, config.queries, config.seed),
            batches=InputsAsTargets(
                training_batches(config.data, self.splits.train, seed=derive_seed(config.seed, "batches"), device=CPU),
                config.steps,
            ),
        ).train(self.stop, self.console)
        self.run.write_weights(snapshot(network))
        return {
            **errors_of(network, self.splits),
            "parameters": sum(p.numel() for p in network.parameters()),
            "queries": json_object(training / SUMMARY)["queries"],
            "seconds": round(time.perf_counter() - started, 3),
            "seed": config.seed,
        }


def bottleneck(shape: tuple[int, ...], code: int, seed: int) -> MLP:
    """A network from inputs of a shape to ``code`` numbers and back, at its initial weights."""
    size = math.prod(shape)
    with seeded_scope(derive_seed(seed, "weights"), CPU):
        return MLP(size, hidden=(code,), num_classes=size, activation="tanh")


def estimator(network: nn.Module, queries: int | None, seed: int) -> Estimator:
    """The gradient of the mean squared error along all coordinates, or along some random directions."""
    seed = derive_seed(seed, "estimator")
    if queries is None:
        return CGE(network, loss=F.mse_loss, seed=seed)
    return RGE(network, loss=F.mse_loss, queries=queries, seed=seed)


def errors_of(network: nn.Module, splits: data.Splits) -> dict[str, float]:
    """Mean squared error of normalized test inputs: of the network, and of their mean over the training set alone."""
    train, test = (whole(split) for split in (splits.train, splits.test))
    with eval_mode(network), torch.no_grad():
        error = F.mse_loss(network(test), test.flatten(1))
    constant = train.flatten(1).mean(0).expand(len(test), -1)
    return {"test_error": float(error), "mean_error": float(F.mse_loss(constant, test.flatten(1)))}


def whole(split: data.Dataset) -> Tensor:
    """All inputs of a split, normalized."""
    x, _ = data.BatchLoader(split, batch_size=len(split)).batch(0, 0)
    return x
