"""The training of a classifier, from its configuration to its run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deepzero import data, validation
from deepzero.errors import InvalidInputError
from deepzero.files import read_from
from deepzero.tasks.classification.classification_config import ClassificationConfig, ModelConfig
from deepzero.tasks.classification.classifier_setup import ClassifierSetup, make_model, make_optimizer, set_up
from deepzero.tasks.classification.coordinate_selection import Ratios
from deepzero.tasks.task_data import Scorer, read_data
from deepzero.team import Team, own_device
from deepzero.training import ModelFile, Result, SharedRun, Sink, StopRequest, Trainer, TrainingConfig
from deepzero.training.checkpoint_contents import parameter_shapes
from deepzero.training.run_folder import RATIOS_FILE, RunFolder
from deepzero.training.training_config import learning_rate

log = logging.getLogger("deepzero")


def train(
    config: ClassificationConfig,
    *,
    out: str | Path,
    resume: bool = False,
    data_dir: str | Path | None = None,
    splits: data.Splits | None = None,
    device: str = "cpu",
    max_seconds: float | None = None,
    loggers: Sequence[str | Sink] = (),
    console: Console | None = None,
    notes: Mapping[str, Any] | None = None,
    team: Team | None = None,
) -> Result:
    """Train a classifier, select weights on the validation split, and look at the test set once, at the end.

    The folder ``out`` gets ``run.json`` (the configuration), ``metrics.jsonl``, ``checkpoints/``, and at the end
    ``summary.json``, ``plot.png`` and ``model.safetensors`` (the selected weights). SIGINT, SIGTERM and ``max_seconds``
    end the run after the current step with everything saved; ``resume=True`` continues it, bitwise on the same hardware
    under the same versions.

    Args:
        config: all that the result depends on.
        out: a folder that is empty or not there; with ``resume``, the folder of a run with the same ``config``.
        resume: continue from the last checkpoint; a finished run is only read.
        data_dir: folder of the data set, see :func:`deepzero.data.load`.
        splits: the data, as :func:`deepzero.tasks.task_data.read_data` gives them; read by default.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        max_seconds: stop after about that time.
        loggers: further places for measurements, as in :class:`deepzero.Trainer`.
        console: for progress; None to be silent.
        notes: JSON-able values to keep in ``run.json``.
        team: the processes that divide the queries, from :func:`deepzero.team.joined`; by default this one alone. All
            of them call this function with the same arguments; rank 0 reads and writes the folder. The weights have
            the same bits whatever their number, which may change when a run is resumed.

    Raises:
        InvalidInputError: an argument is out of its domain.
        DataNotFoundError: the data set is not there.
        RunFolderError: the folder holds another run, or cannot be written.
        CheckpointError: no checkpoint can be used, or one could not be written.
        NonFiniteLossError: training diverged; the last good checkpoint is kept.
        TeamError: another process of the team hangs or has ended.

    Example:
        >>> import tempfile
        >>> from deepzero.tasks.classification import DataConfig, EstimatorConfig, ModelConfig
        >>> from deepzero.training import TrainingConfig
        >>> config = ClassificationConfig(
        ...     data=DataConfig(name="digits", limit=64, batch_size=32),
        ...     model=ModelConfig(name="mlp", options={"hidden": ()}),
        ...     estimator=EstimatorConfig(method="fo"),
        ...     training=TrainingConfig(epochs=2, warmup_epochs=0),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(config, out=folder)
        >>> result.summary["steps"], result.summary["test_accuracy"] > 0.3
        (4, True)
    """
    path, team = Path(out), team or Team()
    place = own_device(validation.device(device))
    started = time.perf_counter()
    run = SharedRun.open(path, config=asdict(config), resume=resume, team=team, files=[RATIOS_FILE])
    with run, StopRequest.of(team, max_seconds=max_seconds) as stop:
        if run.summary is None:
            _require_storage(config, place)
        splits = splits or read_data(config.data, data_dir)
        if run.summary is not None:
            log.info("%s holds a finished run: nothing is left to do", path)
            model = make_model(config.model, splits.train, seed=config.seed).to(place)
            with read_from(
                path / "model.safetensors", advice=RunFolder(path, {"config": asdict(config)}).written_again
            ):
                model.load_state_dict(run.weights())
            return Result(model, path, run.summary)
        kept = run.files.get(RATIOS_FILE)
        known = None if kept is None else Ratios.from_file(path / RATIOS_FILE, kept)
        setup = set_up(config, splits.train, place, team=team, known=known)
        run.start(
            config=asdict(config),
            notes={"parameters": parameter_shapes(setup.model), **(notes or {})},
            files={RATIOS_FILE: asdict(setup.selection.ratios)},
        )
        trainer = _trainer(config, setup, splits, run, loggers=loggers, console=console)
        trainer.started = started
        return trainer.fit(stop=stop)


def _require_storage(config: ClassificationConfig, device: torch.device) -> None:
    """Raise if differences are to be stored as only a GPU stores them."""
    if config.estimator.storage == "float16" and device.type != "cuda":
        raise InvalidInputError(
            f"storage must be float32 on the device {device}, got float16, which is how a GPU keeps differences; leave "
            "it out, or choose device=cuda"
        )


def _trainer(
    config: ClassificationConfig,
    setup: ClassifierSetup,
    splits: data.Splits,
    run: SharedRun,
    *,
    loggers: Sequence[str | Sink],
    console: Console | None,
) -> Trainer:
    """The loop of a classifier: SGD, weights by accuracy on the validation split."""
    training, queries = config.training, setup.selection.ratios.queries
    optimizer = make_optimizer(training, setup.model)
    return Trainer(
        setup.model,
        setup.source,
        optimizer,
        setup.batches,
        validation=Scorer(splits.validation, config.loss, setup.device) if len(splits.validation) else None,
        test=Scorer(splits.test, config.loss, setup.device),
        monitor="validation_accuracy",
        scheduler=_schedule(training, optimizer, len(setup.batches)),
        scheduler_interval="step",
        epochs=training.epochs,
        validate_every=training.evaluate_every,
        checkpoint_steps=training.checkpoint_steps,
        checkpoint_minutes=training.checkpoint_minutes,
        out=run,
        team=run.team,
        loggers=loggers,
        progress=console or False,
        name=_name(config),
        config=asdict(config),
        model_file=_model_file(config.model, splits.train, loss=config.loss, seed=config.seed),
        facts={"validation_accuracy": None, "queries_for_ratios": queries, "seed": config.seed},
        queries_before=queries,
    )


def _schedule(config: TrainingConfig, optimizer: Optimizer, batches: int) -> LambdaLR:
    warmup = round(config.warmup_epochs * batches)
    return learning_rate(optimizer, config.schedule, warmup=warmup, total=config.epochs * batches)


def _model_file(config: ModelConfig, train_set: data.Dataset, *, loss: str, seed: int) -> ModelFile:
    """The recipe of the network, and the form of its inputs and outputs."""
    shape = list(train_set.input_shape)
    return ModelFile(
        target=config.name,
        arguments={"num_classes": train_set.num_classes, "input_shape": shape, "seed": seed, **config.options},
        preprocessing=train_set.preprocessing.to_json(),
        classes=train_set.class_names,
        loss=loss,
        inputs={"shape": shape, "dtype": "float32"},
    )


def _name(config: ClassificationConfig) -> str:
    sparsity = f", {config.sparsity.sparsity:.0%} sparse" if config.sparsity.sparsity else ""
    return f"{config.model.title} on {config.data.title}, {config.estimator.method}{sparsity}"
