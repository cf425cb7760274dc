"""One stage of training: a network trained by the loop of all runs, in a folder of its own, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from torch import nn

from deepzero import validation
from deepzero.training import Batches, GradientSource, RunFolder, Sink, StopRequest, Trainer, versions
from deepzero.training.run_folder import RECORD
from deepzero.training.training_config import SCHEDULES, learning_rate


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training, by Adam.

    Attributes:
        learning_rate: at its peak.
        batch_size: samples of a batch.
        steps: of the optimizer; None: as many as the budget of queries allows.
        schedule: of the learning rate.
    """

    learning_rate: float = 1e-3
    batch_size: int = 64
    steps: int | None = None
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        validation.positive("learning_rate", self.learning_rate, hint="1e-3")
        validation.count("batch_size", self.batch_size)
        validation.choice("schedule", self.schedule, SCHEDULES)
        if self.steps is not None:
            validation.count("steps", self.steps)


@dataclass(frozen=True)
class StagedRun:
    """What a run of several stages left behind.

    Attributes:
        folder: of the run.
        summary: as in ``summary.json``; None if it was stopped before its end.
        stopped: why it was stopped.
    """

    folder: Path
    summary: dict[str, Any] | None
    stopped: str | None = None


def opened(path: Path, *, config: Mapping[str, Any], notes: Mapping[str, Any], resume: bool) -> RunFolder:
    """The folder of a run: a new one, or with ``resume`` that of a run with the same ``config``.

    Raises:
        RunFolderError: it holds another run, or is not free.
    """
    if resume:
        return RunFolder.reopen(path, config=config)
    RunFolder.require_free(path)
    return RunFolder.create(path, config=config, notes={"versions": versions(), **notes})


class StoppedError(Exception):
    """A stage was asked to stop, with everything saved."""


@contextmanager
def alone(folder: Path, stop: StopRequest) -> Iterator[None]:
    """A block in which no other process is at work in a folder that several runs share.

    Raises:
        StoppedError: that was asked for while another process was at work.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if stop.reason is not None:
                raise StoppedError(stop.reason) from None
    try:
        yield
    finally:
        lock.release()


def trained(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    model: nn.Module,
    kept: nn.Module,
    source: GradientSource,
    batches: Batches,
    stage: StageConfig,
    stop: StopRequest,
    console: Console | None = None,
    epochs: int = 1,
    more: Sequence[Sink] = (),
) -> str | None:
    """Train ``model`` in ``folder``, or go on with it there; a stage that is done only gives its weights.

    Args:
        folder: of the stage.
        settings: JSON-able; a folder with other ones is refused.
        model: what is trained, with all that its gradient needs.
        kept: the part whose weights are the result.
        source: of the gradient.
        batches: of one epoch.
        stage: of training.
        stop: ends it early.
        console: where to show progress.
        epochs: parts of the stage, at whose ends ``more`` are told.
        more: further places for measurements.

    Returns:
        Why it stopped early; None if it is done. A stage whose queries are spent is done.
    """
    config = {**settings, "stage": asdict(stage)}
    if (folder / RECORD).exists() and (done := RunFolder.reopen(folder, config=config)).summary is not None:
        kept.load_state_dict(done.read_weights())
        return None
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=stage.learning_rate)
    result = Trainer(
        model,
        source,
        optimizer,
        batches,
        epochs=epochs,
        scheduler=learning_rate(optimizer, stage.schedule, warmup=0, total=epochs * len(batches)),
        scheduler_interval="step",
        loggers=more,
        out=folder,
        progress=console or False,
        config=config,
        model_file=None,
        keep=kept,
    ).fit(resume="auto", stop=stop)
    return result.stopped
