"""The doctor on a run: exactly its data, network, coordinates and loop; and the record of a diagnosis."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deepzero import data, validation
from deepzero.doctor import Diagnosis, LoopCosts, examine, plot_sweep
from deepzero.environment import hardware, versions
from deepzero.errors import InvalidInputError, MissingPackageError, RunFolderError
from deepzero.estimator import Estimator
from deepzero.files import make_folder, replace_file, to_json
from deepzero.stopwatch import Stopwatch, mean_seconds
from deepzero.tasks.classification.classification_config import ESTIMATORS, ClassificationConfig
from deepzero.tasks.classification.classifier_setup import ClassifierSetup, make_optimizer, set_up
from deepzero.tasks.task_data import Scorer, read_data
from deepzero.team import Team
from deepzero.training import Trainer, TrainingConfig
from deepzero.training.batch_reader import random_states, reader, set_random_states

REPORT, PLOT = "diagnosis.json", "sweep.png"
WINDOW = 0.5
"""Seconds of timing each thing that a loop does beside its estimates."""

log = logging.getLogger("deepzero")


def diagnose(
    config: ClassificationConfig,
    *,
    data_dir: str | Path | None = None,
    splits: data.Splits | None = None,
    device: str = "cpu",
    seconds: float = 20.0,
) -> Diagnosis:
    """Examine the first step of the run that :func:`deepzero.tasks.classification.train` would make.

    Args:
        config: of the run.
        data_dir: where the data set lies, see :func:`deepzero.data.load`.
        splits: the data, as :func:`deepzero.tasks.task_data.read_data` gives them; read by default.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        seconds: about how long each part of the examination may take, see :func:`deepzero.doctor.examine`.

    Raises:
        InvalidInputError: an argument is out of its domain, or the run takes its gradients from autograd.
        DataNotFoundError: the data set is not there.

    Example:
        >>> from deepzero.recipes import customize, find
        >>> config = customize(find("digits").config(), sparsity=0.0, limit=64, batch_size=16)
        >>> diagnosis = diagnose(config, seconds=0.1)
        >>> diagnosis.forecast.queries, diagnosis.forecast.loop.steps_per_epoch
        (4955, 4)
    """
    if config.estimator.method not in ESTIMATORS:
        raise InvalidInputError("the doctor examines estimates from function values; choose the estimator cge or rge")
    place = validation.device(device)
    splits = splits or read_data(config.data, data_dir)
    setup = set_up(config, splits.train, place)
    assert isinstance(setup.source, Estimator)
    score = Scorer(splits.validation, config.loss, setup.device) if len(splits.validation) else None
    return examine(
        setup.source,
        *setup.batches.batch(0, 0),
        learning_rate=config.training.learning_rate,
        loop=_loop_costs(config.training, setup, score),
        seconds=seconds,
    )


def diagnose_trainer(trainer: Trainer, *, seconds: float = 20.0) -> Diagnosis:
    """Examine the first step of the run that a trainer would make; the trainer is left as it is.

    The forecast of an epoch counts the batches, and not what the trainer does beside them: the optimizer, validation.

    Args:
        trainer: any, over an estimator.
        seconds: about how long each part of the examination may take, see :func:`deepzero.doctor.examine`.

    Raises:
        InvalidInputError: the trainer takes its gradients from something else than an estimator, or has no batch.
    """
    zo = trainer.source
    if not isinstance(zo, Estimator):
        raise InvalidInputError(
            "the doctor examines estimates from function values; the trainer takes its gradients from "
            f"{type(zo).__name__}, not dz.CGE or dz.RGE"
        )
    device = next(iter(trainer.model.parameters())).device
    before = random_states(trainer.train)
    try:
        batches = reader(trainer.train, device, Team())
        watch = Stopwatch()
        first = next(batches.read(0, 0), None)
        reading = watch.seconds()
    finally:
        set_random_states(before, trainer.train)
    if first is None:
        raise InvalidInputError("train gave no batch; give at least one")
    loop = None
    if batches.length is not None and trainer.epochs is not None:
        loop = LoopCosts(batches.length, step_overhead=reading, epochs=trainer.epochs)
    rate = float(trainer.optimizer.param_groups[0]["lr"]) if isinstance(trainer.optimizer, torch.optim.SGD) else None
    return examine(zo, *first, learning_rate=rate or None, loop=loop, seconds=seconds)


@dataclass(frozen=True)
class DiagnosisRecord:
    """A diagnosis with its origin: the content of ``diagnosis.json``.

    Attributes:
        diagnosis: of a run.
        config: of the run, as JSON-able values.
        title: of the plot.
        device: of the examination.
    """

    diagnosis: Diagnosis
    config: Mapping[str, Any]
    title: str
    device: torch.device

    def as_dict(self) -> dict[str, Any]:
        """The verdict first, then the diagnosis, the configuration, versions and hardware as plain values."""
        return {
            "verdict": self.diagnosis.verdict,
            "healthy": self.diagnosis.healthy,
            "diagnosis": self.diagnosis.as_dict(),
            "config": dict(self.config),
            "versions": versions(),
            "hardware": hardware(self.device),
        }

    def write(self, folder: Path) -> None:
        """Write ``diagnosis.json`` and, if there was a sweep, ``sweep.png``; an earlier diagnosis is replaced.

        Args:
            folder: made if it is not there.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        try:
            make_folder(folder)
            replace_file(folder / REPORT, to_json(self.as_dict()))
            if self.diagnosis.sweep is not None:
                self._write_plot(folder / PLOT)
        except OSError as error:
            raise RunFolderError(f"{folder} could not be written ({error}); choose another --out") from error

    def _write_plot(self, path: Path) -> None:
        """Write the picture of the sweep; a diagnosis does not fail at its end because Matplotlib is not installed."""
        try:
            replace_file(path, plot_sweep(self.diagnosis, title=self.title))
        except MissingPackageError as missing:
            log.warning("%s is left out: %s", path, missing)


def _loop_costs(config: TrainingConfig, setup: ClassifierSetup, score: Scorer | None) -> LoopCosts:
    """Time the parts of a run beside its estimates, on a copy of the model.

    Args:
        config: of the training loop.
        setup: of the run.
        score: on the validation split, if there is one.
    """
    trial, batches = copy.deepcopy(setup.model), setup.batches
    optimizer = make_optimizer(config, trial)
    numbers = itertools.cycle(range(len(batches)))

    def step() -> None:
        batches.batch(0, next(numbers))
        for parameter in trial.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()

    def mean(function: Callable[[], object]) -> float:
        function()  # the first call allocates
        return mean_seconds(function, seconds=WINDOW, most=10_000)

    return LoopCosts(
        steps_per_epoch=len(batches),
        step_overhead=mean(step),
        epoch_overhead=0.0 if score is None else mean(partial(score, trial)),
        epochs=config.epochs,
        startup=setup.selection_seconds,
    )
