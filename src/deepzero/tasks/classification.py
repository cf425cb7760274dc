"""Image classification: data, model, sparsity, estimator and optimizer, wired from one configuration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from deepzero import data, validation
from deepzero.tasks.config import ClassificationConfig
from deepzero.tasks.gradients import gradient_source
from deepzero.tasks.parts import load_images, make_model, make_optimizer, scorer, training_batches
from deepzero.tasks.selection import Ratios, Selection, select
from deepzero.tasks.shared_run import SharedRun
from deepzero.team import Team, own_device
from deepzero.training.environment import hardware, versions
from deepzero.training.evaluation import Scores
from deepzero.training.files import finite
from deepzero.training.loop import Trainer
from deepzero.training.metrics import JsonLines, Sink, TensorBoard, read_metrics
from deepzero.training.plot import plot_run
from deepzero.training.progress import ProgressBar
from deepzero.training.run_folder import RunFolder
from deepzero.training.sources import GradientSource
from deepzero.training.state import snapshot
from deepzero.training.stop import SharedStop, StopRequest

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
    splits: data.Splits | None = None,
    device: str = "cpu",
    max_seconds: float | None = None,
    tensorboard: bool = False,
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
        splits: the images, as :func:`deepzero.tasks.parts.load_images` gives them; loaded by default.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        max_seconds: stop after about so long.
        tensorboard: write event files for TensorBoard too.
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
    path, place, team = Path(out), own_device(validation.device(device)), team or Team()
    run = SharedRun.open(path, config=asdict(config), resume=resume, team=team)
    alone = team.size == 1
    with StopRequest(max_seconds=max_seconds, once=alone, waits=alone) as stop:
        splits = splits or load_images(config, data_dir)
        model = make_model(config, splits.train).to(place)
        if run.summary is not None:
            log.info("%s holds a finished run: nothing is left to do", path)
            model.load_state_dict(run.weights())
            return Result(model, path, run.summary)
        batches = training_batches(config, splits.train, place)
        selection = select(config, model, splits.train, place, team, run.ratios)
        source = gradient_source(config, model, selection, team)
        run.start(config=asdict(config), notes=notes or {}, ratios=selection.ratios)
        with _trainer(config, source, model, splits, batches, selection, run, started, tensorboard, console) as trainer:
            reason = trainer.fit(SharedStop(stop, team))
            if reason is not None:
                return Result(model, path, None, stopped=reason)
            summary = team.from_leader(lambda: _finish(trainer, config, splits, selection.ratios, run))
    model.load_state_dict(run.weights())
    return Result(model, path, summary)


@contextmanager
def _trainer(
    config: ClassificationConfig,
    source: GradientSource,
    model: nn.Module,
    splits: data.Splits,
    batches: data.BatchLoader,
    selection: Selection,
    run: SharedRun,
    started: float,
    tensorboard: bool,
    console: Console | None,
) -> Iterator[Trainer]:
    """A trainer at the last checkpoint, or at the beginning; its sinks are closed afterwards.

    Only the trainer of rank 0 looks at the validation split, selects weights, and writes.
    """
    device = next(model.parameters()).device
    checkpoint = run.last_checkpoint()
    with ExitStack() as stack:
        metrics, store, validate = None, None, None
        if run.folder is not None:
            metrics = JsonLines(run.folder.metrics, start=checkpoint.state["metrics_bytes"] if checkpoint else 0)
            stack.callback(metrics.close)
            store = run.folder.checkpoints()
            validate = scorer(config, splits.validation, model, device) if len(splits.validation) else None
        trainer = Trainer(
            model=model,
            optimizer=make_optimizer(config, model),
            source=source,
            batches=batches,
            validate=validate,
            config=config.training,
            store=store,
            metrics=metrics,
            started=started,
            queries_before=selection.ratios.queries,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        trainer.sinks = _sinks(run.folder, trainer, tensorboard, console)
        for sink in trainer.sinks:
            stack.callback(sink.close)
        yield trainer


def _sinks(folder: RunFolder | None, trainer: Trainer, tensorboard: bool, console: Console | None) -> list[Sink]:
    sinks: list[Sink] = []
    if folder is None:
        return sinks
    if tensorboard:
        sinks.append(TensorBoard(folder.path / "tensorboard", start=trainer.step))
    if console is not None:
        sinks.append(ProgressBar(total=trainer.total_steps, done=trainer.step, console=console))
    return sinks


def _finish(
    trainer: Trainer, config: ClassificationConfig, splits: data.Splits, ratios: Ratios, run: SharedRun
) -> dict[str, Any]:
    """Take the selected weights, look at the test set, and write weights, plot and summary."""
    model, best, folder = trainer.model, trainer.best, run.folder
    assert folder is not None
    if best is not None:
        model.load_state_dict(best.tensors)
    test = scorer(config, splits.test, model, next(model.parameters()).device)()
    trainer.record("test", test_accuracy=test.accuracy, test_loss=test.loss)
    summary = {
        "test_accuracy": test.accuracy,
        "test_loss": finite(test.loss),
        "validation_accuracy": best.scores.accuracy if best else None,
        "selected_epoch": best.epoch if best else config.training.epochs - 1,
        "steps": trainer.step,
        "queries": trainer.queries,
        "queries_for_ratios": ratios.queries,
        "seconds": round(trainer.elapsed(), 3),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seed": config.seed,
        "processes": run.team.size,
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
