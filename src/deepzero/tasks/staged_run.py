"""Runs of several stages: each trains a network by the loop of all runs, in a folder of its own, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deepzero.files import finite, make_folder, read_from
from deepzero.folder_lock import FileLock
from deepzero.tasks.task_config import StageConfig
from deepzero.team import Alone
from deepzero.training import (
    Batches,
    GradientSource,
    RunFolder,
    SharedRun,
    Sink,
    StoppedError,
    StopRequest,
    Trainer,
    hardware,
    versions,
)
from deepzero.training.checkpoint_contents import parameter_shapes
from deepzero.training.run_folder import RECORD, STAGE, writing
from deepzero.training.training_config import learning_rate

PATIENCE = 0.25
"""Seconds between looks at a folder in which another process is at work."""

log = logging.getLogger("deepzero")


@dataclass(frozen=True)
class StagedRun:
    """The outcome of a run of several stages.

    Attributes:
        folder: of the run.
        summary: as in ``summary.json``; None if it was stopped before its end.
        stopped: reason of the stop.
    """

    folder: Path
    summary: dict[str, Any] | None
    stopped: str | None = None


def existing_run(path: Path, *, config: Mapping[str, Any], resume: bool) -> RunFolder | None:
    """The folder of a run to go on with, which is taken, or None where a new run can be made.

    Raises:
        RunFolderError: to be resumed, it holds no run with this ``config``; else, it is not free; or another process
            works in it.
    """
    if resume:
        run = RunFolder.reopen(path, config=config)
        run.take()
        return run
    RunFolder.require_free(path)
    return None


def new_run(path: Path, *, config: Mapping[str, Any], notes: Mapping[str, Any] | None = None) -> RunFolder:
    """The folder of a new run, with further values for ``run.json``."""
    return RunFolder.create(path, config=config, notes={"versions": versions(), **(notes or {})})


def stop_request(max_seconds: float | None) -> StopRequest:
    """The request that ends a run of several stages: at once where nothing is kept but results, else after a step.

    A time limit ends a stage only. What keeps nothing until its end would never get there under a limit that is
    shorter than it takes, however often the run goes on.
    """
    return StopRequest(max_seconds=max_seconds, at_once=True)


def concluded(run: RunFolder, stop: StopRequest, work: Callable[[], Mapping[str, Any]]) -> StagedRun:
    """Do the work of a run and keep its summary, or say that it was stopped.

    Args:
        run: folder of the run.
        stop: ends it early; open while the work is done.
        work: all stages; returns the task's part of the summary, and may raise :class:`StoppedError`.
    """
    try:
        with stop:
            result = work()
            place = {"versions": versions(), "hardware": hardware(torch.device("cpu")), "config": run.record["config"]}
            summary = finite({**result, **place})
            run.write("summary.json", summary)
    except StoppedError as stopped:
        return StagedRun(run.path, None, str(stopped))
    return StagedRun(run.path, summary)


@contextmanager
def alone(folder: Path, stop: StopRequest) -> Iterator[None]:
    """A block in which no other process is at work in a folder that several runs share.

    Raises:
        StoppedError: on request, while another process was at work.
    """
    with writing(folder):
        make_folder(folder.parent)
        lock, told = FileLock(folder.parent / f".{folder.name}.lock"), False
        while not lock.acquire():
            if stop.reason is not None:
                raise StoppedError(stop.reason)
            if not told:
                log.info("waiting for %s, which works in %s", lock.holder(), folder)
            told = True
            time.sleep(PATIENCE)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A network to be trained in a folder of its own.

    Attributes:
        folder: of the stage.
        run: that the stage belongs to, or that uses it: messages name its command as the one that goes on.
        settings: JSON-able; a folder with other ones is refused.
        config: of the training.
        model: network to train, with all that its gradient needs.
        source: of the gradient.
        batches: of one epoch.
        kept: the part whose weights are the result; None for all of the model.
        epochs: equal parts of the stage; ``loggers`` get a record at the end of each.
        loggers: further places for measurements.
    """

    folder: Path
    run: RunFolder
    settings: Mapping[str, Any]
    config: StageConfig
    model: nn.Module
    source: GradientSource
    batches: Batches
    kept: nn.Module | None = None
    epochs: int = 1
    loggers: Sequence[Sink] = ()

    def train(self, stop: StopRequest, console: Console | None = None) -> None:
        """Train the network, or go on with it; a stage that is done only gives its weights.

        A stage whose queries are spent is done.

        Args:
            stop: ends it early.
            console: for progress; None to be silent.

        Raises:
            StoppedError: on request.
            RunFolderError: the folder holds a stage of other settings.
        """
        kept = self.kept or self.model
        record = {**self.settings, STAGE: asdict(self.config)}
        there = (self.folder / RECORD).exists()
        if there:  # what is done is read without the folder being taken, which may be one that cannot be written
            before = RunFolder.reopen(self.folder, config=record, stage_of=self.run)
            if before.read_summary() is not None:
                with read_from(before.weights, advice=before.written_again):
                    kept.load_state_dict(before.read_weights())
                return
        rate, total = self.config.learning_rate, self.epochs * len(self.batches)
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=rate)
        with (
            SharedRun.open(self.folder, config=record, resume=there, team=Alone(), stage_of=self.run) as run,
            stop.saving(),
        ):
            run.start(config=record, notes={"parameters": parameter_shapes(self.model)})
            result = Trainer(
                self.model,
                self.source,
                optimizer,
                self.batches,
                epochs=self.epochs,
                scheduler=learning_rate(optimizer, self.config.schedule, warmup=0, total=total),
                scheduler_interval="step",
                loggers=self.loggers,
                out=run,
                progress=console or False,
                config=record,
                model_file=None,
                keep=kept,
            ).fit(stop=stop)
            if result.stopped is not None:
                raise StoppedError(result.stopped)
