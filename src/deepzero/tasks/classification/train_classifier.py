"""Image classification: data, model, sparsity, estimator and optimizer, wired from one configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deepzero import data, validation
from deepzero.tasks.classification.classification_config import ClassificationConfig
from deepzero.tasks.classification.classification_parts import (
    load_images,
    make_model,
    make_optimizer,
    model_file,
    scorer,
    training_batches,
)
from deepzero.tasks.classification.coordinate_selection import Ratios, select
from deepzero.tasks.classification.gradient_choice import gradient_source
from deepzero.team import Team, own_device
from deepzero.training import Result, SharedRun, Sink, StopRequest, Trainer, TrainingConfig
from deepzero.training.checkpoint_contents import parameter_shapes
from deepzero.training.training_config import learning_rate

RATIOS = "ratios.json"

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
        data_dir: where the data set lies, see :func:`deepzero.data.load`.
        splits: the images, as :func:`~deepzero.tasks.classification.classification_parts.load_images` gives them;
            loaded by default.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        max_seconds: stop after about so long.
        loggers: further places for measurements, as in :class:`deepzero.Trainer`.
        console: where to show progress; None to be silent.
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
        >>> from deepzero.tasks.classification.classification_config import DataConfig, EstimatorConfig, ModelConfig
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
    path, place, team = Path(out), own_device(validation.device(device)), team or Team()
    started = time.perf_counter()
    run = SharedRun.open(path, config=asdict(config), resume=resume, team=team, files=[RATIOS])
    alone = team.size == 1
    with StopRequest(max_seconds=max_seconds, once=alone, waits=alone) as stop:
        splits = splits or load_images(config, data_dir)
        model = make_model(config, splits.train).to(place)
        if run.summary is not None:
            log.info("%s holds a finished run: nothing is left to do", path)
            model.load_state_dict(run.weights())
            return Result(model, path, run.summary)
        batches = training_batches(config, splits.train, place)
        known = Ratios(**run.files[RATIOS]) if RATIOS in run.files else None
        selection = select(config, model, splits.train, place, team, known)
        source = gradient_source(config, model, selection, team)
        noted = {"parameters": parameter_shapes(model), **(notes or {})}
        run.start(config=asdict(config), notes=noted, files={RATIOS: asdict(selection.ratios)})
        optimizer = make_optimizer(config, model)
        trainer = Trainer(
            model,
            source,
            optimizer,
            batches,
            validation=scorer(config, splits.validation, place) if len(splits.validation) else None,
            test=scorer(config, splits.test, place),
            epochs=config.training.epochs,
            scheduler=_schedule(config.training, optimizer, len(batches)),
            scheduler_interval="step",
            monitor="validation_accuracy",
            loggers=loggers,
            out=run,
            validate_every=config.training.evaluate_every,
            checkpoint_steps=config.training.checkpoint_steps,
            checkpoint_minutes=config.training.checkpoint_minutes,
            team=team,
            progress=console or False,
            model_file=model_file(config, splits.train),
            name=_name(config),
            config=asdict(config),
            facts={
                "validation_accuracy": None,
                "queries_for_ratios": selection.ratios.queries,
                "seed": config.seed,
            },
            queries_before=selection.ratios.queries,
        )
        trainer.started = started
        return trainer.fit(stop=stop)


def _schedule(config: TrainingConfig, optimizer: Optimizer, batches: int) -> LambdaLR:
    warmup = round(config.warmup_epochs * batches)
    return learning_rate(optimizer, config.schedule, warmup=warmup, total=config.epochs * batches)


def _name(config: ClassificationConfig) -> str:
    sparsity = f", {config.sparsity.sparsity:.0%} sparse" if config.sparsity.sparsity else ""
    return f"{config.model.title} on {config.data.title}, {config.estimator.method}{sparsity}"
