"""The training loop: one flat loop over steps, for any gradient source and any ``torch.optim`` optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from deepzero.errors import CheckpointError, NonFiniteLossError, QueryBudgetError
from deepzero.evaluators.workers import one_thread
from deepzero.training import state
from deepzero.training.checkpoint import Checkpoint, CheckpointStore
from deepzero.training.config import TrainingConfig
from deepzero.training.evaluation import Scores
from deepzero.training.metrics import JsonLines, Sink
from deepzero.training.schedule import SCHEDULES
from deepzero.training.sources import GradientSource, HoldsTensors, kept_ratios
from deepzero.training.stop import SharedStop, StopRequest

ADVICE = (
    "what to try: a lower learning rate; a larger step size if losses are noisy; `deepzero doctor` measures the noise "
    "floor of the objective and recommends a step size"
)


class Batches(Protocol):
    """Training batches, each a pure function of its epoch and its position, so that order needs no state."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Batch number ``index`` of ``epoch``, both from 0."""
        ...


@dataclass
class Best:
    """The weights selected so far: best on the validation split."""

    scores: Scores
    epoch: int
    tensors: dict[str, Tensor]


@dataclass(kw_only=True)
class Trainer:
    """Everything a run consists of; :meth:`fit` runs it.

    Attributes:
        model: in the mode it is to be trained in.
        optimizer: over the model's parameters; its learning rate is the peak of the schedule.
        source: fills ``p.grad``.
        batches: training batches.
        validate: scores the model on the validation split; None if there is none, and then nothing is selected.
        config: schedule, and how often to look and to save.
        store: where checkpoints go; None in a process that writes none, because another one of its team does.
        metrics: the metrics file, truncated to where the run goes on; None where ``store`` is None.
        sinks: further places for measurements.
        queries_before: function values spent before the first step, on scores for instance.
        started: ``time.perf_counter()`` when this process began with the run.
        seconds: time the run took in processes before this one.
        step: optimizer steps made.
        best: the selected weights, None before the first look at the validation split.
    """

    model: nn.Module
    optimizer: Optimizer
    source: GradientSource
    batches: Batches
    validate: Callable[[], Scores] | None
    config: TrainingConfig
    store: CheckpointStore | None
    metrics: JsonLines | None
    sinks: Sequence[Sink] = ()
    queries_before: int = 0
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    step: int = 0
    best: Best | None = None
    _losses: list[float] = field(default_factory=list)
    _saved: float = float("-inf")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.batches)

    def fit(self, stop: StopRequest | SharedStop) -> str | None:
        """Train to the end, until asked to stop, or until a black box's budget is spent; then comes a checkpoint.

        Returns:
            Why it stopped early, None if it came to its end.

        Raises:
            NonFiniteLossError: a loss, on a training batch or on the validation split, or a weight is not finite; the
                last good checkpoint is kept.
            CheckpointError: a checkpoint could not be written; the previous one is kept.
        """
        if self.step == 0:
            self.save()
        self._saved = time.monotonic()
        while self.step < self.total_steps:
            if (reason := stop.reason) is not None:
                self.save()
                return reason
            try:
                self._train_step()
            except QueryBudgetError as spent:
                self.save()
                return str(spent)
            if self.step % len(self.batches) == 0:
                self._end_epoch()
            if self._checkpoint_is_due():
                self.save()
        return None

    @property
    def queries(self) -> int:
        """Function values spent so far."""
        return self.queries_before + self.source.queries

    def elapsed(self) -> float:
        """Seconds the run has taken, over all processes."""
        return self.seconds + time.perf_counter() - self.started

    def record(self, kind: str, **values: float) -> None:
        """Send a record to all sinks."""
        common = {"kind": kind, "step": self.step, "queries": self.queries, "seconds": round(self.elapsed(), 3)}
        for sink in self.sinks if self.metrics is None else (self.metrics, *self.sinks):
            sink.write({**common, **values})

    def _train_step(self) -> None:
        epoch, index = divmod(self.step, len(self.batches))
        rate = self._set_learning_rate()
        self.source.set_epoch(epoch)
        self.optimizer.zero_grad()
        try:
            loss = float(self.source.backward(*self.batches.batch(epoch, index)))
        except NonFiniteLossError as error:
            raise self._diverged(str(error)) from error
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        with one_thread():
            self.optimizer.step()
        self.step += 1
        self._losses.append(loss)
        self.record("step", epoch=epoch, loss=loss, learning_rate=rate)

    def _set_learning_rate(self) -> float:
        warmup = round(self.config.warmup_epochs * len(self.batches))
        schedule = SCHEDULES[self.config.schedule]
        factor = schedule(self.step, warmup=min(warmup, self.total_steps - 1), total=self.total_steps)
        rate = self.config.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _end_epoch(self) -> None:
        epoch = self.step // len(self.batches) - 1
        record = {"epoch": epoch, "training_loss": _mean(self._losses)}
        self._losses = []
        looks = (epoch + 1) % self.config.evaluate_every == 0 or self.step == self.total_steps
        self.record("epoch", **record, **(self._select(epoch) if looks else {}), **kept_ratios(self.source))

    def _select(self, epoch: int) -> dict[str, float]:
        """Look at the validation split, and keep the weights if they are the best so far."""
        self._require_finite_weights()
        if self.validate is None:
            return {}
        scores = self.validate()
        if not math.isfinite(scores.loss):
            raise self._diverged(f"the loss on the validation split is {scores.loss}")
        if scores.better_than(self.best.scores if self.best else None):
            self.best = Best(scores, epoch, state.snapshot(self.model))
        return {"validation_loss": scores.loss, "validation_accuracy": scores.accuracy}

    def _checkpoint_is_due(self) -> bool:
        every = self.config.checkpoint_steps
        due_by_step = every is not None and self.step % every == 0
        due_by_clock = time.monotonic() - self._saved >= 60 * self.config.checkpoint_minutes
        return due_by_step or due_by_clock or self.step == self.total_steps

    def save(self) -> None:
        """Write a checkpoint of everything that :meth:`restore` needs."""
        self._require_finite_weights()
        if self.store is not None:
            self.store.save(Checkpoint(self.step, self._values(), self._tensors()))
        self._saved = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit.

        Raises:
            CheckpointError: it does not fit this model, optimizer or estimator.
        """
        values, tensors = checkpoint.state, checkpoint.tensors
        try:
            self.model.load_state_dict(state.selected("model", tensors))
            state.restore_optimizer(self.optimizer, values["optimizer"], state.selected("optimizer", tensors))
            self.source.load_state_dict(values["source"])
            if isinstance(self.source, HoldsTensors):
                self.source.load_tensors(state.selected("source", tensors))
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint of step {checkpoint.step} does not fit this run: {error}") from error
        self.step, self.seconds, self._losses = checkpoint.step, values["seconds"], values["losses"]
        if (best := values["best"]) is not None:
            self.best = Best(Scores(**best["scores"]), best["epoch"], state.selected("best", tensors))

    def _values(self) -> dict[str, Any]:
        best = self.best
        return {
            "seconds": self.elapsed(),
            "losses": self._losses,
            "metrics_bytes": 0 if self.metrics is None else self.metrics.size,
            "best": None if best is None else {"scores": asdict(best.scores), "epoch": best.epoch},
            "optimizer": state.optimizer_values(self.optimizer),
            "source": self.source.state_dict(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **state.prefixed("model", state.snapshot(self.model)),
            **state.prefixed("optimizer", state.optimizer_tensors(self.optimizer)),
            **state.prefixed("best", self.best.tensors if self.best else {}),
            **state.prefixed("source", self.source.tensors() if isinstance(self.source, HoldsTensors) else {}),
        }

    def _require_finite_weights(self) -> None:
        if not state.all_finite(self.model):
            raise self._diverged("a weight or a running statistic is not finite")

    def _diverged(self, cause: str) -> NonFiniteLossError:
        epoch = self.step // len(self.batches)
        kept = [] if self.store is None else self.store.paths()
        where = f"the last good checkpoint is {kept[0]}" if kept else "no checkpoint was made yet"
        return NonFiniteLossError(
            f"training stopped at step {self.step} (epoch {epoch + 1}): {cause}\n{where}\n{ADVICE}"
        )


def _mean(losses: Sequence[float]) -> float:
    """The mean of finite numbers, also where their sum is not one."""
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else sum(loss / len(losses) for loss in losses)
