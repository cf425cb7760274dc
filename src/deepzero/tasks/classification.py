"""Image classification: data, model, sparsity, estimator and optimizer, wired from one configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from deepzero import data, models
from deepzero.errors import InvalidInputError
from deepzero.tasks.config import ClassificationConfig
from deepzero.tasks.gradients import Ratios, find_ratios, gradient_source
from deepzero.training.checkpoint import Restored
from deepzero.training.environment import hardware, versions
from deepzero.training.evaluation import Scores, evaluate
from deepzero.training.loop import Trainer
from deepzero.training.metrics import JsonLines, Sink, TensorBoard, read_metrics
from deepzero.training.plot import plot_run
from deepzero.training.progress import ProgressBar
from deepzero.training.run_folder import RunFolder
from deepzero.training.state import snapshot
from deepzero.training.stop import StopRequest

EVALUATION_BATCH = 500
RATIOS = "ratios.json"

log = logging.getLogger("deepzero")


@dataclass(frozen=True)
class Result:
    """What a call of :func:`train` left behind.

    Attributes:
        model: with the selected weights if the run has finished, else as it was when the run stopped.
        folder: the run's folder.
        summary: the run's result as in ``summary.json``; None if it was stopped before its end.
        stopped: why it was stopped, None if it has finished.
    """

    model: nn.Module
    folder: Path
    summary: dict[str, Any] | None
    stopped: str | None = None


def train(
    config: ClassificationConfig,
    *,
    out: str | Path,
    resume: bool = False,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    max_seconds: float | None = None,
    tensorboard: bool = False,
    console: Console | None = None,
    notes: Mapping[str, Any] | None = None,
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
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        max_seconds: stop after about so long.
        tensorboard: write event files for TensorBoard too.
        console: where to show progress; None to be silent.
        notes: JSON-able values to keep in ``run.json``.

    Raises:
        InvalidInputError: an argument is out of its domain.
        DataNotFoundError: the data set is not there.
        RunFolderError: the folder holds another run, or cannot be written.
        CheckpointError: no checkpoint can be used, or one could not be written.
        NonFiniteLossError: training diverged; the last good checkpoint is kept.

    Example:
        >>> import tempfile
        >>> from deepzero.tasks.config import DataConfig, EstimatorConfig, ModelConfig
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
    started = time.perf_counter()
    path, place = Path(out), _device(device)
    folder = RunFolder.reopen(path, config=asdict(config)) if resume else None
    if folder is None:
        RunFolder.require_free(path)
    with StopRequest(max_seconds=max_seconds) as stop:
        splits = _load(config, data_dir)
        model = _model(config, splits.train).to(place)
        if folder is not None and folder.summary is not None:
            log.info("%s holds a finished run: nothing is left to do", path)
            model.load_state_dict(folder.read_weights())
            return Result(model, path, folder.summary)
        batches = _training_batches(config, splits.train, place)
        ratios = _stored_ratios(folder) or find_ratios(config, model, splits.train, place)
        folder = folder or RunFolder.create(
            path, config=asdict(config), notes={**(notes or {}), "versions": versions()}
        )
        folder.write(RATIOS, asdict(ratios))
        with _trainer(config, model, splits, batches, ratios, folder, started, tensorboard, console) as trainer:
            reason = trainer.fit(stop)
            if reason is not None:
                return Result(model, path, None, stopped=reason)
            return Result(model, path, _finish(trainer, config, splits, ratios, folder))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"device must be cpu, cuda or cuda:<number>, got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise InvalidInputError(f"device must be cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device cuda was asked for, but torch finds no CUDA device here; use cpu")
    return device


def _load(config: ClassificationConfig, data_dir: str | Path | None) -> data.Splits:
    images = config.data
    return data.load(
        images.name,
        data_dir=data_dir,
        validation=images.validation,
        image_size=images.image_size,
        limit=images.limit,
    )


def _model(config: ClassificationConfig, train_set: data.Dataset) -> nn.Module:
    channels, size, _ = train_set.image_shape
    return models.build(
        config.model.name,
        num_classes=train_set.num_classes,
        in_channels=channels,
        image_size=size,
        seed=config.seed,
        **config.model.options,
    )


def _stored_ratios(folder: RunFolder | None) -> Ratios | None:
    """The ratios that a run to be resumed found at its start."""
    stored = folder.read(RATIOS) if folder is not None else None
    return None if stored is None else Ratios(**stored)


@contextmanager
def _trainer(
    config: ClassificationConfig,
    model: nn.Module,
    splits: data.Splits,
    batches: data.BatchLoader,
    ratios: Ratios,
    folder: RunFolder,
    started: float,
    tensorboard: bool,
    console: Console | None,
) -> Iterator[Trainer]:
    """A trainer at the last checkpoint, or at the beginning; its sinks are closed afterwards."""
    device = next(model.parameters()).device
    restored = _last_checkpoint(folder)
    with ExitStack() as stack:
        metrics = JsonLines(folder.metrics, start=restored.checkpoint.state["metrics_bytes"] if restored else 0)
        stack.callback(metrics.close)
        trainer = Trainer(
            model=model,
            optimizer=_optimizer(config, model),
            source=gradient_source(config, model, ratios),
            batches=batches,
            validate=_scorer(splits.validation, model, device) if len(splits.validation) else None,
            config=config.training,
            store=folder.checkpoints(),
            metrics=metrics,
            started=started,
            queries_before=ratios.queries,
        )
        if restored is not None:
            trainer.restore(restored.checkpoint)
            log.info("continuing from %s", restored.path)
        trainer.sinks = _sinks(folder, trainer, tensorboard, console)
        for sink in trainer.sinks:
            stack.callback(sink.close)
        yield trainer


def _last_checkpoint(folder: RunFolder) -> Restored | None:
    store = folder.checkpoints()
    if not store.paths():
        return None
    restored = store.load()
    if (before := folder.record.get("versions")) != versions():
        log.warning("this run was started under %s and goes on under %s: its bits may differ", before, versions())
    for reason in restored.rejected:
        log.warning("%s; falling back to %s", reason, restored.path)
    return restored


def _training_batches(config: ClassificationConfig, train_set: data.Dataset, device: torch.device) -> data.BatchLoader:
    images = config.data
    augments = images.padding > 0 or images.flip
    return data.BatchLoader(
        train_set,
        batch_size=images.batch_size,
        shuffle=True,
        augmentation=data.Augmentation(padding=images.padding, flip=images.flip) if augments else None,
        drop_last=images.drop_last,
        seed=config.seed,
        device=device,
    )


def _optimizer(config: ClassificationConfig, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.training.learning_rate,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
    )


def _scorer(images: data.Dataset, model: nn.Module, device: torch.device) -> Callable[[], Scores]:
    batches = data.BatchLoader(images, batch_size=EVALUATION_BATCH, device=device)
    return lambda: evaluate(model, batches.iterate(), F.cross_entropy)


def _sinks(folder: RunFolder, trainer: Trainer, tensorboard: bool, console: Console | None) -> list[Sink]:
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(TensorBoard(folder.path / "tensorboard", start=trainer.step))
    if console is not None:
        sinks.append(ProgressBar(total=trainer.total_steps, done=trainer.step, console=console))
    return sinks


def _finish(
    trainer: Trainer, config: ClassificationConfig, splits: data.Splits, ratios: Ratios, folder: RunFolder
) -> dict[str, Any]:
    """Take the selected weights, look at the test set, and write weights, plot and summary."""
    model, best = trainer.model, trainer.best
    if best is not None:
        model.load_state_dict(best.tensors)
    test = _scorer(splits.test, model, next(model.parameters()).device)()
    trainer.record("test", test_accuracy=test.accuracy, test_loss=test.loss)
    summary = {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "validation_accuracy": best.scores.accuracy if best else None,
        "selected_epoch": best.epoch if best else config.training.epochs - 1,
        "steps": trainer.step,
        "queries": trainer.queries,
        "queries_for_ratios": ratios.queries,
        "seconds": round(trainer.elapsed(), 3),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seed": config.seed,
        "versions": versions(),
        "hardware": hardware(next(model.parameters()).device),
        "config": folder.record["config"],
    }
    folder.write_weights(snapshot(model))
    folder.write_plot(plot_run(read_metrics(folder.metrics), title=_title(config, test)))
    folder.write("summary.json", summary)
    return summary


def _title(config: ClassificationConfig, test: Scores) -> str:
    sparsity = f", {config.sparsity.sparsity:.0%} sparse" if config.sparsity.sparsity else ""
    return f"{config.model.name} on {config.data.name}, {config.estimator.method}{sparsity}: {test.accuracy:.2%}"
