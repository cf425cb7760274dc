"""The training loop, for any network, gradient source, ``torch.optim`` optimizer and data."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from deepzero import validation as checks
from deepzero.data import Preprocessing
from deepzero.environment import hardware, versions
from deepzero.errors import (
    CheckpointError,
    InvalidInputError,
    NonFiniteLossError,
    QueryBudgetError,
    RunFolderError,
)
from deepzero.estimator import Estimator
from deepzero.evaluators.distributed import divided
from deepzero.evaluators.workers import one_thread
from deepzero.files import finite
from deepzero.team import Alone, Team
from deepzero.training import divergence
from deepzero.training.batch_reader import reader, scores_itself
from deepzero.training.callbacks import Callback, direction, monitored
from deepzero.training.checkpoint import Checkpoint, CheckpointStore
from deepzero.training.checkpoint_contents import (
    Best,
    LiveObjects,
    Position,
    parameter_shapes,
    prefixed,
    require_fitting,
    snapshot,
)
from deepzero.training.evaluation import Metric, eval_mode, measured
from deepzero.training.gradient_sources import GradientSource, kept_ratios
from deepzero.training.loggers import open_logger
from deepzero.training.metrics import JsonLines, Sink
from deepzero.training.model_file import EXPORTED, ModelFile
from deepzero.training.progress import ProgressBar, console_for
from deepzero.training.run_folder import RECORD
from deepzero.training.run_result import Result, write_result
from deepzero.training.shared_run import SharedRun
from deepzero.training.stop_request import SharedStop, StopRequest
from deepzero.training.trainer_arguments import check, described, described_model, several

log = logging.getLogger("deepzero")

BUDGET = "the budget of"


@dataclass(frozen=True)
class _Goal:
    """The length of a run, in epochs or, if they are above 0, in optimizer steps."""

    epochs: int = 0
    steps: int = 0

    @classmethod
    def of(cls, epochs: int | None, steps: int | None) -> _Goal:
        """The goal of a call of :meth:`Trainer.fit`.

        Raises:
            InvalidInputError: both are given, or neither, or one is below 1.
        """
        if (epochs is None) == (steps is None):
            raise InvalidInputError("say how long to train, in epochs or in steps: fit(epochs=10), fit(steps=1000)")
        if steps is not None:
            return cls(steps=checks.count("steps", steps))
        return cls(epochs=checks.count("epochs", epochs or 0))

    def is_reached(self, position: Position) -> bool:
        """True if no step is left to make."""
        return position.step >= self.steps if self.steps else position.epoch >= self.epochs


class Trainer:
    """Trains a network by an estimator's gradients, with checkpoints, validation, early stopping and resume.

    .. code-block:: text

        for every epoch:  for every batch:  estimator.backward(*batch); optimizer.step(); scheduler.step()
                          look at the validation data; keep the best weights; save

    A run that is interrupted (Ctrl-C, SIGTERM, ``max_minutes``, a killed process) and continued by ``fit(resume=True)``
    ends with the same bits as an unbroken one, on the same hardware under the same versions. Nothing is pickled.

    Args:
        model: in the mode it is to be trained in.
        estimator: fills ``p.grad``: :func:`deepzero.CGE`, :func:`deepzero.RGE`, or any
            :class:`~deepzero.training.GradientSource` over the model.
        optimizer: any of ``torch.optim`` over the model's parameters that needs no closure.
        train: a ``DataLoader`` or another iterable of batches; a function of the epoch that returns one; an object with
            ``batch(epoch, index)`` and a length; None for a problem without data. A batch that is a tuple or list is
            what ``estimator.backward(*batch)`` is called with, anything else (a dict) is its one argument; tensors are
            brought to the model's device.
        validation: the same kinds of data, or a function of the model, which is in eval mode then, that returns numbers
            by name; after every ``validate_every`` epochs it is looked at, and the weights that are best by ``monitor``
            are the result.
        test: likewise; looked at once, at the end, with the selected weights.
        epochs: passes over the data; what :meth:`fit` takes by default.
        scheduler: any of ``torch.optim.lr_scheduler``; ``ReduceLROnPlateau`` is given the monitored number.
        scheduler_interval: ``epoch`` or ``step``, after each of which the scheduler goes on.
        metrics: ``metric(outputs, targets)`` over a whole split, by name; see :func:`deepzero.training.measured`. None:
            accuracy, where targets are class labels.
        monitor: the number to select weights by; ties go to the lower validation loss.
        mode: ``min``, ``max``, or ``auto``: losses and errors are to fall, all else is to rise.
        callbacks: :class:`~deepzero.training.Callback` objects or functions of ``(trainer, record)``;
            :class:`~deepzero.training.EarlyStopping` is one.
        loggers: further places for measurements: ``tensorboard``, ``wandb`` or ``mlflow``, which are opened in ``out``
            when the run starts, or :class:`~deepzero.training.Sink` objects, which are closed when it ends.
        out: the folder of the run, empty or not there; None: nothing is written.
        accumulate: batches of an optimizer step; their gradients are averaged.
        clip_norm: largest norm of the whole gradient, which is scaled down to it.
        clip_value: largest absolute value of an entry of the gradient, which is cut to it.
        validate_every: epochs between two looks at the validation data; the last epoch is always looked at.
        max_queries: function values that may be spent; the run is over before the step that would exceed them, if it
            takes as many as the step before (a schedule whose steps differ may go beyond by the difference).
        max_minutes: save and stop after this time; ``fit(resume=True)`` goes on.
        checkpoint_steps: steps between two checkpoints; None to go by the clock alone.
        checkpoint_minutes: minutes between two checkpoints.
        team: the processes that divide the queries, from :func:`deepzero.joined`. All of them build the same trainer;
            rank 0 alone writes. The weights have the same bits whatever their number.
        progress: True for a bar, or lines where there is no terminal, on standard error; None: only where it is a
            terminal or a notebook; or a console to show it on.
        classes: names of the classes in the order of the outputs, for predictions by :func:`deepzero.load_run`.
        preprocessing: from raw inputs to those of the network, for predictions of raw inputs.
        model_file: for :func:`deepzero.load_run`, which makes the model again by it; by default the network is exported
            at the end. None: the folder keeps its weights alone.
        name: of the run in its picture and its model card; the model's class by default.
        config: JSON-able settings that the run depends on and must be resumed with; by default a description of model,
            estimator and optimizer.
        notes: further JSON-able values for ``run.json``.
        facts: further JSON-able values for ``summary.json``.
        keep: the part of the model whose weights are the result; all of it by default.
        queries_before: function values spent before the first step.

    Attributes:
        best: the selected weights, None before the first look at the validation data.
        started: ``time.perf_counter()`` when the run began in this process; None before and after :meth:`fit`.

    Raises:
        InvalidInputError: an argument is out of its domain.

    Example:
        >>> import torch, torch.nn.functional as F, deepzero as dz
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
        >>> loader = torch.utils.data.DataLoader(data, batch_size=16)
        >>> model = torch.nn.Linear(3, 2)
        >>> trainer = dz.Trainer(
        ...     model, dz.CGE(model, loss=F.cross_entropy), torch.optim.SGD(model.parameters(), lr=0.5), loader,
        ...     validation=loader,
        ... )
        >>> result = trainer.fit(epochs=20)
        >>> result.summary["steps"], result.summary["validation_accuracy"] > 0.9
        (80, True)
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: GradientSource,
        optimizer: Optimizer,
        train: Any,
        *,
        validation: Iterable[Any] | Callable[[nn.Module], Mapping[str, float]] | None = None,
        test: Iterable[Any] | Callable[[nn.Module], Mapping[str, float]] | None = None,
        epochs: int | None = None,
        scheduler: Any = None,
        scheduler_interval: str = "epoch",
        metrics: Mapping[str, Metric] | None = None,
        monitor: str = "validation_loss",
        mode: str = "auto",
        callbacks: Sequence[Callback | Callable[[Trainer, Mapping[str, Any]], None]] = (),
        loggers: Sequence[Sink | str] = (),
        out: str | Path | SharedRun | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        validate_every: int = 1,
        max_queries: int | None = None,
        max_minutes: float | None = None,
        checkpoint_steps: int | None = None,
        checkpoint_minutes: float = 5.0,
        team: Team | None = None,
        progress: bool | Console | None = None,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        model_file: ModelFile | None = EXPORTED,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        keep: nn.Module | None = None,
        queries_before: int = 0,
    ) -> None:
        self.started: float | None = None
        self.model, self.source, self.optimizer, self.train = model, estimator, optimizer, train
        self.validation, self.test, self.epochs = validation, test, epochs
        self.scheduler, self.scheduler_interval = scheduler, scheduler_interval
        self.metrics, self.monitor, self.mode = metrics, monitor, direction(mode, monitor)
        self.callbacks, self.loggers, self.out = several("callbacks", callbacks), several("loggers", loggers), out
        self.accumulate, self.clip_norm, self.clip_value = accumulate, clip_norm, clip_value
        self.validate_every, self.max_queries, self.max_minutes = validate_every, max_queries, max_minutes
        self.checkpoint_steps, self.checkpoint_minutes = checkpoint_steps, checkpoint_minutes
        self.team, self._divides = team or Alone(), team is not None
        self.progress, self.model_file = progress, described_model(model_file, classes, preprocessing, estimator)
        self.name, self.notes, self.facts = name or type(model).__name__, dict(notes or {}), dict(facts or {})
        self.keep, self.queries_before = keep or model, queries_before
        check(self)
        self.config = dict(described(self) if config is None else config)
        self.best: Best | None = None
        self._at = Position()
        self._goal = _Goal()
        self._reader = reader(train, self._device, self.team)
        self._run: SharedRun | None = out if isinstance(out, SharedRun) else None
        self._store: CheckpointStore | None = None
        self._start_of_metrics: int | None = None
        self._written: JsonLines | None = None
        self._sinks: list[Sink] = []
        self._latest: dict[str, Tensor] | None = None
        self._unbounded, self._at_start = divergence.unbounded_buffers(model), 1.0
        self._saved = float("-inf")

    def fit(
        self,
        epochs: int | None = None,
        *,
        steps: int | None = None,
        resume: bool | str = False,
        stop: StopRequest | None = None,
    ) -> Result:
        """Train until ``epochs`` (or ``steps``) are completed in all, whatever an earlier call did of them.

        Args:
            epochs: passes over the data; by default those that the trainer was made with.
            steps: optimizer steps, in place of epochs.
            resume: go on from the last checkpoint in ``out``; ``"auto"``: if there is a run, else begin. A finished run
                goes on if there is more to do than it has done.
            stop: a request that is open already, in a program that does other things before; by default one of its
                own, which SIGINT, SIGTERM and ``max_minutes`` fill.

        Raises:
            InvalidInputError: neither epochs nor steps are given, or both.
            RunFolderError: ``out`` holds another run, or none to resume.
            CheckpointError: no checkpoint can be used, or one could not be written; or the data are others than before.
            NonFiniteLossError: training diverged; the last good checkpoint is kept.
            TeamError: another process of the team hangs or has ended.
        """
        check(self)  # attributes may have been set since
        self._goal = _Goal.of(self.epochs if epochs is None and steps is None else epochs, steps)
        self.started = time.perf_counter() if self.started is None else self.started
        with ExitStack() as stack:
            stack.callback(self._stop_the_clock)
            stack.callback(self._release)
            if stop is None:
                seconds = None if self.max_minutes is None else 60 * self.max_minutes
                stop = stack.enter_context(StopRequest.of(self.team, max_seconds=seconds))
            self._open(resume)
            if self._is_over() and self._run is not None and self._run.summary is not None:
                self.keep.load_state_dict(self._run.weights())
                return Result(self.model, self.folder, self._run.summary)
            self._open_sinks(stack)
            self._at_start = divergence.largest_weight(self.model)
            stopped = self._train(SharedStop(stop, self.team))
            if stopped is not None:
                return Result(self.model, self.folder, None, stopped)
            return Result(self.model, self.folder, self._finish())

    def join(self, team: Team) -> None:
        """Divide the queries of the estimator among the processes of a team, which may be this one alone."""
        self.team, self._divides = team, True
        self._reader = reader(self.train, self._device, team)

    def stop(self, why: str) -> None:
        """End the run after the current step as if it were complete; for callbacks."""
        self._at.ended = self._at.ended or why

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self._at.step

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._at.epoch

    @property
    def queries(self) -> int:
        """Function values spent so far."""
        return self.queries_before + self.source.queries

    @property
    def folder(self) -> Path | None:
        """The folder of the run."""
        if isinstance(self.out, SharedRun):
            return self.out.path
        return None if self.out is None else Path(self.out)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None where only reading the data tells."""
        length = self._reader.length
        per_epoch = None if length is None else math.ceil(length / self.accumulate)
        return self._goal.steps or (None if per_epoch is None else self._goal.epochs * per_epoch)

    def elapsed(self) -> float:
        """Seconds the run has taken, over all processes."""
        return self._at.seconds + (0.0 if self.started is None else time.perf_counter() - self.started)

    def _stop_the_clock(self) -> None:
        self._at.seconds, self.started = self.elapsed(), None

    # The loop

    def _train(self, stop: SharedStop) -> str | None:
        """Train to the end, or until asked to stop, and return the reason; a checkpoint is saved in either case."""
        if self.step == 0:
            self.save()
        self._saved = time.monotonic()
        while not self._is_over():
            if (reason := self._train_epoch(stop)) is not None:
                self.save()
                return reason
            if self._is_checkpoint_due() or self._is_over():
                self.save()
        return None

    def _train_epoch(self, stop: SharedStop) -> str | None:
        """Train on the rest of an epoch, or until asked to stop, and return the reason."""
        self.source.set_epoch(self.epoch)
        batches = self._reader.read(self.epoch, self._at.index)
        complete = False
        while not (complete or self._is_over() or self._is_out_of_queries()):
            if (reason := stop.agreed()) is not None:
                return reason
            try:
                complete = not self._step(itertools.islice(batches, self.accumulate)) or self._is_epoch_read()
            except QueryBudgetError as spent:
                self.stop(f"{BUDGET} a black box is spent: {spent}")
            stop.begin()  # before the first step there is nothing to save: an interrupt ends it at once
            if not complete and self._is_checkpoint_due():
                self.save()
        self._end_epoch(complete=complete or self._is_epoch_read())
        return None

    def _step(self, batches: Iterator[tuple[Any, ...]]) -> bool:
        """One optimizer step on a few batches; False if none is left in this epoch."""
        self.optimizer.zero_grad()
        queries = self.source.queries
        losses = self._add_gradients(batches)
        if not losses:
            return False
        self._condition_gradient(len(losses))
        self._require(divergence.in_learning_rate(self.optimizer))
        rate = self.optimizer.param_groups[0]["lr"]
        with one_thread():
            self.optimizer.step()
        if self.scheduler is not None and self.scheduler_interval == "step":
            self.scheduler.step()
        self._at.cost = self.source.queries - queries
        self._at.kept = kept_ratios(self.source)
        self._at.end_step(batches=len(losses), loss=_mean(losses))
        self.record("step", epoch=self.epoch, loss=self._at.losses[-1], learning_rate=float(rate))
        return True

    def _add_gradients(self, batches: Iterator[tuple[Any, ...]]) -> list[float]:
        """Add up the gradients of a few batches in ``.grad``; their losses."""
        losses: list[float] = []
        for batch in batches:
            if self.step == 0 and not losses:
                self._look_at_first(batch)
            losses.append(self._backward(batch))
        return losses

    def _backward(self, batch: tuple[Any, ...]) -> float:
        try:
            loss = float(self.source.backward(*batch))
        except NonFiniteLossError as error:
            raise self.diverged(str(error)) from error
        except InvalidInputError as error:
            self._require(divergence.in_growth(self.model, self._at_start, error))
            raise
        self._require(divergence.in_loss(loss))
        return loss

    def _condition_gradient(self, batches: int) -> None:
        """Average the gradients that were added up, and clip the mean."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad(), one_thread():
            if batches > 1:
                for parameter in parameters:
                    parameter.grad /= batches
            self._require(divergence.in_gradient(parameters))
            if self.clip_norm is not None:
                self._require(divergence.in_norm(float(nn.utils.clip_grad_norm_(parameters, self.clip_norm))))
            if self.clip_value is not None:
                nn.utils.clip_grad_value_(parameters, self.clip_value)

    def _end_epoch(self, *, complete: bool) -> None:
        """Look at the validation data, keep the best weights, and record it; a run may end within an epoch."""
        if complete and self._at.index == 0:
            raise InvalidInputError("train gave no batch in this epoch; give at least one")
        epoch, losses = self.epoch, self._at.losses
        if not (complete or losses) and (self.validation is None or self._at.looked == self.step):
            return  # nothing has happened since the last epoch's end
        record: dict[str, Any] = {"epoch": epoch, **({"training_loss": _mean(losses)} if losses else {})}
        self._at.end_epoch(complete=complete)
        if (epoch + 1) % self.validate_every == 0 or self._is_over() or not complete:
            self._at.looked = self.step
            self._require(self._in_weights())
            if self.validation is not None:
                record |= {f"validation_{name}": value for name, value in self._validate(epoch).items()}
        self.record("epoch", **record, **self._at.kept)
        if self.scheduler is not None and self.scheduler_interval == "epoch" and complete:
            self._step_scheduler(record)

    def _step_scheduler(self, record: Mapping[str, Any]) -> None:
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif self.monitor in record:
            self.scheduler.step(record[self.monitor])

    def _validate(self, epoch: int) -> dict[str, float]:
        """Scores on the validation data, the same on every rank; the weights are kept if they are the best so far."""
        try:
            scores: dict[str, float] = self.team.from_leader(lambda: self._scores(self.validation))
        except NonFiniteLossError as error:
            raise self.diverged(f"on the validation data, {error}") from error
        self._require(divergence.in_scores(scores, self.monitor))
        if self.best is None or self._rank(scores) > self._rank(self.best.scores):
            self.best = Best(scores, epoch, snapshot(self.model))
        return scores

    def _rank(self, scores: Mapping[str, float]) -> tuple[float, float]:
        value = monitored({f"validation_{name}": score for name, score in scores.items()}, self.monitor)
        return (value if self.mode == "max" else -value), -scores.get("loss", 0.0)

    def _scores(self, data: Any) -> dict[str, float]:
        if scores_itself(data):
            with eval_mode(self.model):
                return {name: float(value) for name, value in data(self.model).items()}
        objective = self.source.objective  # type: ignore[attr-defined] # as the arguments' check asks for
        return measured(objective, reader(data, self._device, Alone()).read(0, 0), self.metrics)

    def record(self, kind: str, **values: Any) -> None:
        """Give a record to sinks and callbacks."""
        record = self._write(kind, **values)
        for callback in self.callbacks:
            if isinstance(callback, Callback):
                callback.on_record(self, record)
            else:
                callback(self, record)
        if self.callbacks and self.team.highest(int(self._at.ended is not None)):
            self.stop("another process of the team has ended the run")

    def _write(self, kind: str, **values: Any) -> dict[str, Any]:
        common = {"kind": kind, "step": self.step, "queries": self.queries, "seconds": round(self.elapsed(), 3)}
        record = {**common, **values}
        for sink in self._sinks:
            sink.write(record)
        return record

    def _is_over(self) -> bool:
        return self._at.ended is not None or self._goal.is_reached(self._at)

    def _is_epoch_read(self) -> bool:
        """True if all batches of the epoch were read, as far as that is known before its end."""
        return self._reader.length is not None and self._at.index >= self._reader.length

    def _is_out_of_queries(self) -> bool:
        """End the run if another step would exceed ``max_queries``, taking as many as the one before; True if over."""
        if self.max_queries is not None and self.queries + (self._at.cost or 0) > self.max_queries:
            self.stop(f"{BUDGET} {self.max_queries:,} queries")
        return self._is_over()

    def _look_at_first(self, batch: tuple[Any, ...]) -> None:
        """Keep the form of the input; refuse a budget that is below one step."""
        if len(batch) == 2 and isinstance(batch[0], Tensor) and batch[0].dim() > 0:
            self._at.inputs = {"shape": list(batch[0].shape[1:]), "dtype": str(batch[0].dtype).removeprefix("torch.")}
        if self.max_queries is None or not isinstance(self.source, Estimator):
            return
        cost = self.accumulate * self.source.cost(self.source.directions(*batch))
        if self.queries + cost > self.max_queries:
            raise InvalidInputError(
                f"a step takes {cost:,} queries, but only {self.max_queries - self.queries:,} of max_queries="
                f"{self.max_queries:,} are left; raise max_queries, or query fewer coordinates or directions"
            )

    # Checkpoints

    def _is_checkpoint_due(self) -> bool:
        every = self.checkpoint_steps
        due_by_step = every is not None and self.step % every == 0
        return due_by_step or time.monotonic() - self._saved >= 60 * self.checkpoint_minutes

    def save(self) -> None:
        """Write a checkpoint of everything that :meth:`restore` needs.

        Raises:
            NonFiniteLossError: a weight or the learning rate is not finite; the last good checkpoint is kept.
            CheckpointError: it could not be written; the last good one is kept.
        """
        self._require(self._in_weights() or divergence.in_learning_rate(self.optimizer))
        if self._store is not None:
            self._store.save(self._checkpoint())
        self._saved = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit.

        Raises:
            CheckpointError: it does not fit this model, optimizer or estimator.
        """
        try:
            self._live_objects().restore(checkpoint)
            self._at = Position.of(checkpoint)
            if (best := Best.of(checkpoint)) is not None:
                require_fitting(best.tensors, self.model)
                self.best = best
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint of step {checkpoint.step} does not fit this run: {error}") from error

    def _checkpoint(self) -> Checkpoint:
        live, best = self._live_objects(), self.best
        values = {
            "position": {**asdict(self._at), "seconds": self.elapsed()},
            "metrics_bytes": 0 if self._written is None else self._written.flush(),
            "best": None if best is None else best.values(),
        }
        tensors = prefixed("best", {} if best is None else best.tensors)
        return Checkpoint(self.step, values | live.values(), live.tensors() | tensors)

    def _live_objects(self) -> LiveObjects:
        return LiveObjects(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            source=self.source,
            reader=self._reader,
            callbacks=[callback for callback in self.callbacks if isinstance(callback, Callback)],
        )

    def _in_weights(self) -> str | None:
        return divergence.in_weights(self.model, unbounded=self._unbounded)

    def _require(self, cause: str | None) -> None:
        """Raise if there is a cause to end the training."""
        if cause is not None:
            raise self.diverged(cause)

    def diverged(self, cause: str) -> NonFiniteLossError:
        """The error that ends the run, with the last good checkpoint and advice; for callbacks, too."""
        kept = [] if self._store is None else self._store.paths()
        return divergence.diverged(cause, step=self.step, epoch=self.epoch, checkpoints=kept)

    # Beginning and end

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _open(self, resume: bool | str) -> None:
        """Open the folder, and go to where the run is; a trainer that has run already goes on where it is."""
        if self._latest is not None:
            self.model.load_state_dict(self._latest)
            self._latest = None
        if self._divides and isinstance(self.source, Estimator):
            self.source.evaluator = divided(self.source.evaluator, self.team)
        if self.folder is None:
            if resume is True:
                raise InvalidInputError("resume=True needs the folder of the run; give the trainer out='runs/mine'")
        elif self._store is None and self._start_of_metrics is None:
            self._open_folder(self.folder, resume)
        elif self._run is not None:
            self._run.take()
            self.team.from_leader(self._require_newest)
        if self._at.ended is not None and self._at.ended.startswith(BUDGET):
            self._at.ended = None  # the budget may have been raised: it is compared again
        self._is_out_of_queries()

    def _open_folder(self, folder: Path, resume: bool | str) -> None:
        run = self._run
        if run is None:
            there = self.team.from_leader((folder / RECORD).exists)
            goes_on = there if resume == "auto" else bool(resume)
            run = SharedRun.open(folder, config=self.config, resume=goes_on, team=self.team)
            run.start(config=self.config, notes={"parameters": parameter_shapes(self.model), **self.notes})
            self._run = run
        if run.folder is not None:
            self._store = run.folder.checkpoints()
        self._start_of_metrics = 0
        if (checkpoint := self._restored(run)) is not None:
            self._start_of_metrics = checkpoint.state["metrics_bytes"]

    def _restored(self, run: SharedRun) -> Checkpoint | None:
        """Go to the newest checkpoint that fits; None if none was made yet."""
        unfit: dict[int, str] = {}
        while (checkpoint := run.last_checkpoint(unfit)) is not None:
            reason = None
            try:
                self.restore(checkpoint)
            except CheckpointError as error:
                reason = str(error)
            if (reason := self.team.first(reason)) is None:
                return checkpoint
            unfit[checkpoint.step] = reason
        return None

    def _require_newest(self) -> None:
        """Raise if another process has gone on with the run since the last call of this trainer."""
        newest = [] if self._store is None else self._store.paths()
        if newest and int(newest[0].name.removeprefix("step-")) > self.step:
            raise RunFolderError(
                f"the run in {self.folder} has gone on elsewhere, to {newest[0].name}, while this trainer is at step "
                f"{self.step}; make a new trainer and call fit(resume=True)"
            )

    def _release(self) -> None:
        """Let other processes work in the folder, unless whoever gave the run goes on with it."""
        if self._run is not None and self._run is not self.out:
            self._run.release()

    def _open_sinks(self, stack: ExitStack) -> None:
        """Open the places for measurements, on rank 0; they are closed with the stack."""
        folder = None if self._run is None else self._run.folder
        self._sinks, self._written = [], None
        if not self.team.leads:
            return
        if folder is not None:
            folder.discard_result()
            self._written = JsonLines(folder.metrics, start=self._start_of_metrics or 0, present=folder.require_there)
            self._start_of_metrics = sys.maxsize  # whatever a later call of this trainer adds comes behind
            self._sinks.append(self._written)
        for logger in self.loggers:
            if isinstance(logger, str):
                assert folder is not None  # as the arguments' check asks for
                self._sinks.append(open_logger(logger, folder.path, config=self.config))
            else:
                self._sinks.append(logger)
        if (console := console_for(self.progress)) is not None:
            self._sinks.append(ProgressBar(total=self.total_steps, done=self.step, console=console))
        for sink in self._sinks:
            stack.callback(sink.close)

    def _finish(self) -> dict[str, Any]:
        """Take the selected weights, look at the test data, and write the result of the run."""
        if self.best is not None:
            self._latest = snapshot(self.model)
            self.model.load_state_dict(self.best.tensors)
        summary: dict[str, Any] = self.team.from_leader(self._conclude)
        if self._run is not None:
            self._run.summary = summary
        return summary

    def _conclude(self) -> dict[str, Any]:
        """On rank 0: test, summary, files."""
        best = self.best
        test = {} if self.test is None else {f"test_{k}": v for k, v in self._scores(self.test).items()}
        if test:
            self._write("test", **test)
        for name in (name for name, value in test.items() if not math.isfinite(value)):
            log.warning("%s is %s with the selected weights, and stands as null in the summary", name, test[name])
        found = {
            **self.facts,
            **test,
            **({} if best is None else {f"validation_{name}": value for name, value in best.scores.items()}),
            "selected_epoch": max(self.epoch - 1, 0) if best is None else best.epoch,
            "epochs": self.epoch,
            "steps": self.step,
            "queries": self.queries,
            "seconds": round(self.elapsed(), 3),
            "ended": self._at.ended,
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "processes": self.team.size,
            "versions": versions(),
            "hardware": hardware(self._device),
            "config": self.config,
        }
        summary: dict[str, Any] = finite(found)
        if self._run is not None and self._run.folder is not None:
            write_result(
                self._run.folder,
                summary,
                name=self.name,
                model=self.keep,
                model_file=self.model_file,
                inputs=self._at.inputs,
            )
        return summary


def _mean(losses: Sequence[float]) -> float:
    """The mean of finite numbers, also where their sum is not one."""
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else sum(loss / len(losses) for loss in losses)
