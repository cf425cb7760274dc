import hashlib
import io
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError, RunFolderError
from deepzero.estimator import Estimator
from deepzero.files import to_json
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.sparsity import DynamicRatios
from deepzero.step_sizes import as_step_size
from deepzero.team import Alone
from deepzero.training import (
    Autograd,
    Best,
    CheckpointStore,
    EarlyStopping,
    StopRequest,
    Trainer,
    evaluate,
    measured,
    read_metrics,
)
from deepzero.training.callbacks import direction
from deepzero.training.checkpoint import Checkpoint
from deepzero.training.divergence import in_weights, unbounded_buffers
from deepzero.training.run_result import Result
from deepzero.training.training_config import learning_rate


class Batches:
    """Two classes of noisy points; every batch is a function of its epoch and position."""

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 * epoch + index)
        y = torch.randint(2, (8,), generator=generator)
        return torch.randn(8, 3, generator=generator) + 2 * y[:, None], y


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 2))


def sparse_cge(model: nn.Module) -> Estimator:
    ratios = DynamicRatios({"0.weight": 0.3, "4.weight": 0.5}, every=1, seed=3)
    return dz.CGE(model, loss=F.cross_entropy, sparsity=ratios, evaluator=dz.SequentialEvaluator(), seed=1)


def rge(model: nn.Module) -> Estimator:
    return dz.RGE(model, loss=F.cross_entropy, queries=5, evaluator=dz.SequentialEvaluator(), seed=1)


def fo(model: nn.Module) -> Autograd:
    return Autograd(model, loss=F.cross_entropy, seed=1)


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def adam(model: nn.Module) -> Any:
    return torch.optim.Adam(model.parameters(), lr=0.1)


def trainer(
    folder: Path | None,
    *,
    source: Callable[..., Any] = fo,
    optimizer: Callable[..., Any] = sgd,
    batches: Any = None,
    sinks: tuple[Any, ...] = (),
    validate: bool = True,
    epochs: int = 3,
    **options: Any,
) -> Trainer:
    model = network()
    test = Batches(1).batch(77, 0)
    made = optimizer(model)
    batches = batches or Batches()
    return Trainer(
        model,
        source(model),
        made,
        batches,
        validation=(lambda model: asdict(evaluate(model, [test], F.cross_entropy))) if validate else None,
        epochs=epochs,
        scheduler=learning_rate(made, "cosine", warmup=len(batches) // 2, total=epochs * len(batches)),
        scheduler_interval="step",
        monitor="validation_accuracy",
        loggers=sinks,
        out=folder,
        model_file=None,
        config={"a test": True},
        **options,
    )


def checkpoint(folder: Path) -> Checkpoint:
    run = hashlib.sha256(to_json({"a test": True})).hexdigest()
    return CheckpointStore(folder / "checkpoints", run=run).load().checkpoint


def test_a_folder_that_is_moved_during_a_run_is_named_with_the_step_and_goes_on_in_its_new_place(
    tmp_path: Path,
) -> None:
    fit(trainer(tmp_path / "whole", checkpoint_steps=2))

    def move(made: Trainer, record: Any) -> None:
        if made.step == 7 and record["kind"] == "step":
            (tmp_path / "run").rename(tmp_path / "moved")

    with pytest.raises(RunFolderError, match=r"was moved to .*moved while it was running \(step 8\)"):
        fit(trainer(tmp_path / "run", checkpoint_steps=2, callbacks=[move]))
    assert not (tmp_path / "run").exists()
    fit(trainer(tmp_path / "moved", checkpoint_steps=2), resume=True)
    assert bits(tmp_path / "moved") == bits(tmp_path / "whole")
    assert without_time(tmp_path / "moved" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_folder_that_is_deleted_during_a_run_is_not_made_again(tmp_path: Path, step: int) -> None:
    """At the last step it is the end of the run that misses it."""

    def delete(made: Trainer, record: Any) -> None:
        if made.step == step and record["kind"] == "step":
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(
        RunFolderError, match=rf"was moved or deleted while it was running \(step ({step}|{step + 1})\)"
    ):
        fit(trainer(tmp_path / "run", checkpoint_steps=100, callbacks=[delete]))
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_is_called_again_notices_that_the_run_went_on_elsewhere(tmp_path: Path) -> None:
    made = trainer(tmp_path, checkpoint_steps=2)
    fit(made, until=3)
    fit(trainer(tmp_path, checkpoint_steps=2), resume=True, until=8)
    with pytest.raises(
        RunFolderError, match=r"has gone on elsewhere, to step-00000008, while this trainer is at step 3"
    ):
        fit(made)


def test_a_run_that_goes_on_in_another_thread_is_not_joined(tmp_path: Path) -> None:
    def second(made: Trainer, _record: Any) -> None:
        if made.step == 3:
            with pytest.raises(RunFolderError, match="is in use by this process itself"):
                fit(trainer(tmp_path), resume=True)

    made = trainer(tmp_path, callbacks=[second])
    assert fit(made).summary is not None


class StopAfter(StopRequest):
    """Asks to stop once the trainer has made so many steps."""

    def __init__(self, trainer: Trainer, step: float) -> None:
        super().__init__()
        self.trainer, self.step = trainer, step

    @property
    def reason(self) -> str | None:
        return "SIGTERM" if self.trainer.step >= self.step else None


def fit(made: Trainer, *, until: float = math.inf, **options: Any) -> Result | None:
    return made.fit(stop=StopAfter(made, until), **options)


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(path)]


def bits(folder: Path) -> dict[str, bytes]:
    """Every tensor of the newest checkpoint: weights, buffers, optimizer state, selected weights."""
    return {name: value.numpy().tobytes() for name, value in checkpoint(folder).tensors.items()}


def test_a_spent_budget_of_a_black_box_ends_a_run_which_goes_on_with_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A black box inside of the network says stop; the weights are those of the last whole step."""

    def with_a_black_box(budget: int | None) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), dz.Opaque(torch.tanh, queries=2, max_queries=budget), nn.Linear(4, 2))

    a_step = 8 * (1 + 2 * 2)
    monkeypatch.setitem(globals(), "network", lambda: with_a_black_box(3 * a_step + 2 + 10))
    run = trainer(tmp_path, validate=False)
    result = run.fit()
    assert result.stopped is None
    assert "max_queries" in result.summary["ended"]
    assert run.step == result.summary["steps"] == 3
    kept = checkpoint(tmp_path)
    monkeypatch.setitem(globals(), "network", lambda: with_a_black_box(None))
    again = trainer(tmp_path, validate=False)
    result = again.fit(resume=True)
    assert result.summary["ended"] is None
    assert again.step == 12
    assert kept.step == 3


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("source", [sparse_cge, rge, fo])
@pytest.mark.parametrize("cut", [1, 6, 8])  # in the warm-up, within an epoch, at its end
def test_an_interrupted_run_ends_in_the_same_bits(
    tmp_path: Path, source: Callable[..., Any], optimizer: Callable[..., Any], cut: int
) -> None:
    whole = trainer(tmp_path / "whole", source=source, optimizer=optimizer)
    assert fit(whole).stopped is None
    part = trainer(tmp_path / "parts", source=source, optimizer=optimizer)
    assert fit(part, until=cut).stopped == "SIGTERM"
    torch.rand(5)  # the global generator must not matter
    rest = trainer(tmp_path / "parts", source=source, optimizer=optimizer)
    assert fit(rest, resume=True).stopped is None
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert rest.source.state_dict() == whole.source.state_dict()
    assert without_time(tmp_path / "parts" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")
    assert rest.best.scores == whole.best.scores


def test_a_run_killed_after_a_checkpoint_repeats_what_was_not_saved(tmp_path: Path) -> None:
    """Measurements after the checkpoint are cut away, not written twice."""
    fit(trainer(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    def kill(_trainer: Trainer, record: dict[str, Any]) -> None:
        if record["step"] == 6:
            raise Killed

    with pytest.raises(Killed):
        fit(trainer(tmp_path / "killed", checkpoint_steps=4, callbacks=[kill]))
    assert checkpoint(tmp_path / "killed").step == 4
    fit(trainer(tmp_path / "killed"), resume=True)
    assert without_time(tmp_path / "killed" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")


def test_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    begun = time.perf_counter()
    first = trainer(tmp_path)
    first.started = begun - 1000
    fit(first, until=2)
    rest = trainer(tmp_path)
    found = fit(rest, resume=True).summary["seconds"]
    assert 1000 < found < 1000 + time.perf_counter() - begun


def test_time_before_and_after_a_call_does_not_count() -> None:
    made = trainer(None)
    made.fit()
    spent = made.elapsed()
    time.sleep(0.01)
    assert made.elapsed() == spent


def test_records_say_what_happened(tmp_path: Path) -> None:
    fit(trainer(tmp_path, source=sparse_cge))
    records = read_metrics(tmp_path / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "step"]
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert [record["epoch"] for record in steps] == [0] * 4 + [1] * 4 + [2] * 4
    per_step = 1 + round(0.3 * 15) + 5 + 5 + 5 + 5 + 2  # base, sparse weights, biases and norm in full
    assert [record["queries"] for record in steps] == [per_step * k for k in range(1, 13)]
    assert steps[0]["learning_rate"] == pytest.approx(0.05)
    assert max(record["learning_rate"] for record in steps) == pytest.approx(0.1)
    for epoch, record in enumerate(epochs):
        losses = [r["loss"] for r in steps if r["epoch"] == epoch]
        assert record["training_loss"] == pytest.approx(sum(losses) / len(losses))


def scored(made: Trainer, scores: list[dict[str, float]]) -> list[Any]:
    """Let the validation give these scores, and note the weights it saw."""
    seen, given = [], iter(scores)

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(model[0].weight.detach().clone())
        return next(given)

    made.validation = validate
    return seen


def test_the_weights_that_are_best_on_validation_are_kept(tmp_path: Path) -> None:
    made = trainer(tmp_path, epochs=4)
    scores = [(0.5, 1.0), (0.9, 0.5), (0.9, 0.6), (0.8, 0.1)]
    seen = scored(made, [{"accuracy": accuracy, "loss": loss} for accuracy, loss in scores])
    result = fit(made)
    assert made.best.epoch == result.summary["selected_epoch"] == 1
    assert result.summary["validation_accuracy"] == 0.9
    assert torch.equal(result.model[0].weight, seen[1])
    restored = trainer(tmp_path, epochs=4)
    assert fit(restored, resume=True).summary == result.summary
    assert torch.equal(restored.model[0].weight, seen[1])


def test_what_is_monitored_falls_or_rises_by_its_name_or_as_asked() -> None:
    for monitor, mode, best in (
        ("validation_error", "auto", 1),
        ("validation_f1", "auto", 0),
        ("validation_error", "max", 0),
        ("validation_f1", "min", 1),
    ):
        made = trainer(None)
        made.monitor, made.mode = monitor, direction(mode, monitor)
        name = monitor.removeprefix("validation_")
        scored(made, [{name: 0.9}, {name: 0.1}, {name: 0.5}])
        made.fit()
        assert made.best.epoch == best


def test_validation_may_be_rarer_than_epochs_but_never_misses_the_last(tmp_path: Path) -> None:
    fit(trainer(tmp_path, epochs=3, validate_every=2))
    epochs = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record["kind"] == "epoch"]
    assert ["validation_loss" in record for record in epochs] == [False, True, True]


def test_without_validation_nothing_is_selected(tmp_path: Path) -> None:
    made = trainer(tmp_path, validate=False)
    result = fit(made)
    assert made.best is None
    assert result.summary["selected_epoch"] == 2
    assert "validation_loss" not in result.summary


def test_the_model_trains_in_train_mode_after_each_validation(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    modes = []
    made.model[1].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    fit(made)
    assert modes == ([True] * 4 + [False]) * 3


def saves(made: Trainer) -> list[Any]:
    saved, save = [], made.save

    def note() -> None:
        saved.append(made.step)
        save()

    made.save = note
    return saved


def test_checkpoints_are_made_by_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, checkpoint_steps=5)
    saved = saves(made)
    fit(made)
    assert saved == [0, 5, 10, 12]


def test_checkpoints_are_made_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, checkpoint_minutes=5)
    monkeypatch.setattr("deepzero.training.trainer.time.monotonic", lambda: 100.0 * made.step)
    fit(made, until=7)
    assert [path.name for path in made._store.paths()] == ["step-00000007", "step-00000006"]


class NanFrom:
    """A source whose loss is not finite from a step on."""

    def __init__(self, model: nn.Module, step: int) -> None:
        self.inner, self.first = fo(model), step

    def __getattr__(self, name: str) -> Callable[..., Any] | NetworkObjective | int | None:
        return getattr(self.inner, name)

    def backward(self, x: Tensor, y: Tensor) -> Tensor | None:
        return self.inner.backward(x * torch.nan if self.inner.step >= self.first else x, y)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_and_advice(tmp_path: Path) -> None:
    made = trainer(tmp_path, source=lambda model: NanFrom(model, 6), checkpoint_steps=5)
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 6 \(epoch 2\).*step-00000005.*lower learning rate.*doctor"):
        fit(made)
    kept = checkpoint(tmp_path)
    assert kept.step == 5
    weights = {name: value for name, value in kept.tensors.items() if name.startswith("model/")}
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_weights_that_are_not_finite_are_never_saved_or_selected(tmp_path: Path) -> None:
    def explode(made: Trainer, record: dict[str, Any]) -> None:
        if record["step"] == 4:
            made.model[0].weight.data.fill_(math.inf)

    made = trainer(tmp_path, checkpoint_steps=3, callbacks=[explode])
    with pytest.raises(NonFiniteLossError, match="step-00000003"):
        fit(made)
    assert made.best is None
    assert checkpoint(tmp_path).step == 3


class Returning:
    """A source that returns a loss of its own making in place of an error."""

    def __init__(self, model: nn.Module, loss: float) -> None:
        self.inner, self.loss = fo(model), loss

    def __getattr__(self, name: str) -> Callable[..., Any] | NetworkObjective | int | None:
        return getattr(self.inner, name)

    def backward(self, x: Tensor, y: Tensor) -> float:
        self.inner.backward(x, y)
        return self.loss


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_source_that_returns_a_loss_that_is_not_finite_stops_before_the_step_is_taken(
    tmp_path: Path, loss: float
) -> None:
    made = trainer(tmp_path, source=lambda model: Returning(model, loss))
    start = made.model[0].weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 0 \(epoch 1\): the loss is .*step-00000000"):
        fit(made)
    assert torch.equal(made.model[0].weight, start)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_divergence(tmp_path: Path, loss: float) -> None:
    """The weights are finite, and the training loss is: only the validation split shows that something is wrong."""
    made = trainer(tmp_path, checkpoint_steps=3)
    scored(made, [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.9, "loss": loss}])
    with pytest.raises(
        NonFiniteLossError, match=rf"(?s)step 8 .*validation split is {loss}.*step-00000006.*learning rate"
    ):
        fit(made)
    assert made.best.scores == {"accuracy": 0.5, "loss": 1.0}
    assert checkpoint(tmp_path).step == 6
    assert [r["epoch"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch"] == [0]


class Scheduled:
    """A schedule of a user's own: it sets the rate that it is given for a step."""

    def __init__(self, optimizer: Any, rates: dict[int, float]) -> None:
        self.optimizer, self.rates, self.steps = optimizer, rates, 0

    def step(self) -> None:
        self.steps += 1
        self.optimizer.param_groups[-1]["lr"] = self.rates.get(self.steps, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_learning_rate_that_is_no_step_downhill_is_divergence(tmp_path: Path, rate: float, interval: str) -> None:
    """Before a step is taken by it, and before a checkpoint holds it: a resumed run would have it for good."""
    made = trainer(tmp_path, checkpoint_steps=1)
    at = 5 if interval == "step" else 4
    made.scheduler = Scheduled(made.optimizer, {at if interval == "step" else 1: rate})
    made.scheduler_interval = interval
    weights = {}
    made.callbacks.append(lambda t, record: weights.setdefault(t.step, t.model[0].weight.detach().clone()))
    kept = rf"(?s)step {at} .*learning rate is {rate:g}; .*step-0000000{at - 1}.*lower learning rate"
    with pytest.raises(NonFiniteLossError, match=kept):
        fit(made)
    assert torch.equal(made.model[0].weight, weights[at])
    assert checkpoint(tmp_path).step == at - 1


class Changed(Returning):
    """A source that gives a finite loss, and a gradient that is multiplied."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__(model, 1.0)
        self.model, self.factor = model, factor

    def backward(self, x: Tensor, y: Tensor) -> float:
        loss = super().backward(x, y)
        for parameter in self.model.parameters():
            parameter.grad *= self.factor
        return loss


@pytest.mark.parametrize(
    ("options", "factor", "cause"),
    [
        ({}, math.nan, "the gradient of . parameter tensors is not finite"),
        ({"accumulate": 2}, math.inf, "the gradient of . parameter tensors is not finite"),
        ({"clip_norm": 1.0}, 1e30, "the norm of the gradient is inf, so it cannot be clipped"),
    ],
)
def test_a_gradient_that_is_not_finite_is_divergence_before_the_step_is_taken(
    tmp_path: Path, options: dict[str, Any], factor: float, cause: str
) -> None:
    """Clipping by a norm that overflows would give zeros: steps that say nothing."""
    made = trainer(tmp_path, source=lambda model: Changed(model, factor), **options)
    start = made.model[0].weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match=rf"(?s)step 0 .*{cause}\n.*step-00000000.*lower learning rate"):
        fit(made)
    assert torch.equal(made.model[0].weight, start)


@pytest.mark.parametrize("step_size", [None, 5e-3])
def test_weights_that_outgrow_their_steps_are_divergence(tmp_path: Path, step_size: float | None) -> None:
    """Not a step size that was chosen badly: it was right for the weights at the beginning."""

    def of_steps(model: nn.Module) -> Estimator:
        return dz.CGE(model, loss=F.cross_entropy, step_size=step_size, evaluator=dz.SequentialEvaluator())

    def far(model: nn.Module) -> Any:
        return torch.optim.SGD(model.parameters(), lr=1e27)

    made = trainer(tmp_path, source=of_steps, optimizer=far, checkpoint_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"(?s)step \d .*step-0000000.*lower learning rate"):
        fit(made)


def test_bad_input_in_the_middle_of_a_run_is_no_divergence(tmp_path: Path) -> None:
    class Second(Batches):
        def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
            x, y = super().batch(epoch, index)
            return (x, y) if index == 0 else (x, y.double() if index == 1 else y)

    def refusing(output: Tensor, y: Tensor) -> Tensor:
        if y.dtype == torch.float64:
            raise InvalidInputError("labels must be integers")
        return F.cross_entropy(output, y)

    made = trainer(tmp_path, source=lambda model: Autograd(model, loss=refusing), batches=Second())
    with pytest.raises(InvalidInputError, match="labels must be integers"):
        fit(made)


def test_a_loss_of_the_test_data_that_is_not_finite_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = trainer(tmp_path, epochs=1)
    made.test = lambda model: {"loss": math.inf, "accuracy": 0.5}
    assert fit(made, epochs=1).summary["test_loss"] is None
    assert "test_loss is inf with the selected weights, and stands as null in the summary" in caplog.messages


def test_a_number_that_weights_are_selected_by_and_that_cannot_be_compared_is_divergence(tmp_path: Path) -> None:
    """Weights that are the best by NaN would be the result, whatever came later."""
    made = trainer(tmp_path)
    scored(made, [{"accuracy": math.nan, "loss": 1.0}])
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 4 .*validation_accuracy is nan, and .*step-00000000"):
        fit(made)
    assert made.best is None


def test_early_stopping_by_a_number_that_cannot_be_compared_is_divergence(tmp_path: Path) -> None:
    made = trainer(tmp_path, callbacks=[EarlyStopping("validation_f1")])
    scored(made, [{"accuracy": 0.5, "f1": math.nan}])
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 4 .*validation_f1 is nan, and .*step-00000000"):
        fit(made)


def test_other_numbers_of_the_validation_may_be_infinite(tmp_path: Path) -> None:
    made = trainer(tmp_path, callbacks=[EarlyStopping("validation_perplexity")])
    scores = {"accuracy": 0.5, "perplexity": math.inf}
    scored(made, [scores] * 3)
    fit(made)
    assert Best.of(checkpoint(tmp_path)).scores == scores
    found = [r["validation_perplexity"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch"]
    assert found == [None] * 3


def test_a_validation_that_finds_the_loss_not_finite_is_divergence(tmp_path: Path) -> None:
    def validate(model: nn.Module) -> dict[str, float]:
        raise NonFiniteLossError("the objective returned inf")

    made = trainer(tmp_path)
    made.validation = validate
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 4 .*on the validation data, the obj.*step-00000000.*lower"):
        fit(made)


def test_a_buffer_that_is_infinite_by_its_nature_is_no_divergence(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    again = Trainer(made.model, made.source, made.optimizer, Batches(), epochs=1, model_file=None)
    again.fit()
    made.model.mask[0, 0] = math.nan
    assert in_weights(made.model, unbounded=unbounded_buffers(made.model)) is not None


def test_the_mean_of_huge_losses_is_a_number() -> None:
    told = []
    tell = [lambda _trainer, record: told.append(record)]
    fit(trainer(None, source=lambda model: Returning(model, 1e308), epochs=1, callbacks=tell))
    assert told[-1]["training_loss"] == 1e308


def test_the_source_is_told_each_epoch_so_that_coordinates_are_drawn_for_it(tmp_path: Path) -> None:
    """Every step's gradient lies in the set of its epoch, and the sets differ."""
    ratios = DynamicRatios({"0.weight": 0.3, "4.weight": 0.5}, every=1, unit="epoch", seed=3)

    def drawn_by_epoch(model: nn.Module) -> Estimator:
        return dz.CGE(model, loss=F.cross_entropy, sparsity=ratios, evaluator=dz.SequentialEvaluator(), seed=1)

    made = trainer(tmp_path, source=drawn_by_epoch, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    backward, touched = made.source.backward, []

    def note(*batch: Tensor) -> Tensor:
        loss = backward(*batch)
        touched.append({name: p.grad != 0 for name, p in made.model.named_parameters() if name in ratios.ratios})
        return loss

    made.source.backward = note
    fit(made)
    shapes = {name: p.shape for name, p in parameters_of(made.source.objective).items()}
    sets = [ratios.coordinates(StepContext(0, epoch, made.source.objective, ())).masks(shapes) for epoch in range(3)]
    assert not torch.equal(sets[0]["4.weight"], sets[1]["4.weight"])
    assert len(touched) == 12
    for step, masks in enumerate(touched):
        assert all(bool((mask <= sets[step // 4][name]).all()) for name, mask in masks.items())
        assert any(bool(mask.any()) for mask in masks.values())


def test_a_signal_finishes_the_step_and_saves(tmp_path: Path) -> None:
    def interrupt(_trainer: Trainer, record: dict[str, Any]) -> None:
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    result = trainer(tmp_path, callbacks=[interrupt]).fit()
    assert result.stopped == "SIGTERM"
    assert result.summary is None
    assert checkpoint(tmp_path).step == 5


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    fit(made, until=1)
    made.model[0] = nn.Linear(3, 6)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        made.restore(checkpoint(tmp_path))


def test_a_checkpoint_of_another_step_size_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, source=sparse_cge)
    fit(made, until=1)
    made.source.step_rule = as_step_size(1e-4, order=1)
    with pytest.raises(CheckpointError, match="step_size"):
        made.restore(checkpoint(tmp_path))


# What users bring -----------------------------------------------------------------------------------------------------


def points(count: int = 40) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def own(folder: Path | None = None, *, train: Any = None, model: Any = None, **options: Any) -> Trainer:
    """A trainer as a user's first script would make it."""
    model = model or network()
    train = DataLoader(points(), batch_size=16, shuffle=True) if train is None else train
    options = {"validation": DataLoader(points(), batch_size=7), "model_file": None, **options}
    return Trainer(model, sparse_cge(model), sgd(model), train, out=folder, **options)


class Noisy:
    """A data set that draws from all three global generators, as augmentation does."""

    def __init__(self) -> None:
        self.data = points(24)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.data[index]
        return x + torch.randn(3) + np.random.rand() + random.random(), y  # noqa: NPY002


class Stream(IterableDataset):
    def __init__(self, count: int = 24) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for k in range(self.count):
            yield torch.rand(3) + k % 2, k % 2


LOADERS = {
    "shuffled": lambda: DataLoader(points(), batch_size=16, shuffle=True),
    "a generator of its own": lambda: DataLoader(
        points(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "augmented": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=1),
    "a stream": lambda: DataLoader(Stream(), batch_size=8),
    "a list": lambda: [tuple(points(8).tensors), tuple(points(12).tensors)],
    "a function": lambda: lambda epoch: ((torch.rand(6, 3) + epoch, torch.arange(6) % 2) for _ in range(3)),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_any_loader_is_read_on_where_it_was_interrupted(tmp_path: Path, kind: str, cut: int) -> None:
    def seeded() -> None:
        torch.manual_seed(5)
        np.random.seed(6)  # noqa: NPY002
        random.seed(7)

    seeded()
    whole = own(tmp_path / "whole", train=LOADERS[kind]())
    fit(whole, epochs=3)
    seeded()
    part = own(tmp_path / "part", train=LOADERS[kind]())
    assert fit(part, epochs=3, until=cut).stopped == "SIGTERM"
    seeded()
    torch.rand(9)
    rest = own(tmp_path / "part", train=LOADERS[kind]())
    fit(rest, epochs=3, resume=True)
    expected, found = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert without_time(tmp_path / "part" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")


def test_data_with_a_hidden_generator_cannot_be_resumed_and_says_so(tmp_path: Path) -> None:
    class Hidden(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.draws = np.random.default_rng(0)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x, y = self.data[index]
            return x + self.draws.random(), y

    fit(own(tmp_path, train=DataLoader(Hidden(), batch_size=8)), epochs=2, until=4)
    rest = own(tmp_path, train=DataLoader(Hidden(), batch_size=8))
    with pytest.raises(CheckpointError, match=r"batch 1 of epoch 2 is another one.*random generator"):
        fit(rest, epochs=2, resume=True)


def test_data_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    fit(own(tmp_path, train=[tuple(points(8).tensors)] * 3), epochs=2, until=2)
    rest = own(tmp_path, train=[tuple(points(8).tensors)])
    with pytest.raises(CheckpointError, match="only 1 batches now, but 2"):
        fit(rest, epochs=2, resume=True)


def test_batches_that_are_added_up_are_one_larger_batch() -> None:
    """Without batch norm and dropout, the mean of two gradients is the gradient of the joint batch."""
    x, y = points(16).tensors
    weights = []
    for train, accumulate in (([(x, y)], 1), ([(x[:8], y[:8]), (x[8:], y[8:])], 2)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batches = [(a.double(), b) for a, b in train]
        made = Trainer(model, fo(model), optimizer, batches, accumulate=accumulate)
        assert made.fit(epochs=5).summary["steps"] == 5
        weights.append(model.weight.detach())
    assert torch.allclose(weights[0], weights[1], rtol=1e-12)
    assert not torch.equal(weights[0], torch.zeros(2, 3).double())


def test_the_last_batches_of_an_epoch_are_averaged_by_their_number() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    train = [(torch.ones(1, 1), torch.tensor([[float(k)]])) for k in (1, 2, 4)]
    zo = Autograd(model, loss=F.mse_loss)
    made = Trainer(model, zo, torch.optim.SGD(model.parameters(), lr=0.5), train, accumulate=2)
    made.fit(epochs=1)
    assert made.step == 2
    first = 0.5 * 2 * (1 + 2) / 2
    assert model.weight.item() == pytest.approx(first + 0.5 * 2 * (4 - first))


def test_gradients_are_clipped_by_norm_and_by_value() -> None:
    for option, expected in (({"clip_norm": 1.0}, [0.6, 0.8]), ({"clip_value": 2.0}, [2.0, 2.0]), ({}, [3.0, 4.0])):
        model = nn.Linear(2, 1, bias=False)
        model.weight.data.zero_()
        zo = Autograd(model, loss=lambda output, target: (output * target).mean())
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        Trainer(model, zo, optimizer, [(torch.tensor([[3.0, 4.0]]), torch.ones(1, 1))], **option).fit(epochs=1)
        assert torch.allclose(-model.weight, torch.tensor([expected]), atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 2]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=4),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.9),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
            milestones=[2],
        ),
    ],
)
def test_any_scheduler_goes_on_after_an_interruption(tmp_path: Path, scheduler: Callable[..., Any]) -> None:
    def made(folder: Path) -> Trainer:
        model = network()
        optimizer = adam(model)
        train = [tuple(points(8).tensors)] * 2
        schedule = scheduler(optimizer)
        return Trainer(
            model, fo(model), optimizer, train, scheduler=schedule, validation=train, out=folder, model_file=None
        )

    fit(made(tmp_path / "whole"), epochs=4)
    fit(made(tmp_path / "part"), epochs=4, until=5)
    fit(made(tmp_path / "part"), epochs=4, resume=True)
    records = without_time(tmp_path / "whole" / "metrics.jsonl")
    assert records == without_time(tmp_path / "part" / "metrics.jsonl")
    rates = [record["learning_rate"] for record in records if record["kind"] == "step"]
    assert len(set(rates)) > 1
    assert rates[::2] == rates[1::2]  # by epoch


def test_early_stopping_keeps_the_best_and_goes_on_counting_after_an_interruption(tmp_path: Path) -> None:
    losses = [1.0, 0.5, 0.6, 0.7, 0.4, 0.3]

    def made() -> Trainer:
        one = own(tmp_path, callbacks=[EarlyStopping(patience=2)])
        one.validation = lambda _model: {"loss": losses[one.epoch - 1]}
        return one

    assert fit(made(), epochs=6, until=9).stopped == "SIGTERM"  # after the third epoch
    result = fit(made(), epochs=6, resume=True)
    assert result.summary["epochs"] == 4
    assert "validation_loss has not improved for 2 looks" in result.summary["ended"]
    assert result.summary["selected_epoch"] == 1
    assert fit(made(), epochs=6, resume=True).summary == result.summary


def test_a_change_below_min_delta_is_no_improvement() -> None:
    one = own(callbacks=[EarlyStopping(patience=1, min_delta=0.2)])
    one.validation = lambda _model: {"loss": 1.0 - 0.1 * one.epoch}
    assert one.fit(epochs=9).summary["epochs"] == 2


def test_a_callback_may_end_the_run_with_weights_and_summary(tmp_path: Path) -> None:
    def enough(trainer: Trainer, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == 4:
            trainer.stop("enough")

    result = own(tmp_path, callbacks=[enough]).fit(epochs=3)
    assert result.summary["ended"] == "enough"
    assert result.summary["steps"] == 4
    assert (tmp_path / "model.safetensors").exists()


def test_the_budget_of_queries_holds_and_may_be_raised(tmp_path: Path) -> None:
    a_step = 1 + 4 + 5 + 5 + 5 + 5 + 2  # as above: of 15 and 10 sparse weights, 4 and 5
    result = own(tmp_path, max_queries=4 * a_step + 1).fit(epochs=9)
    steps = result.summary["steps"]
    assert result.summary["queries"] <= 4 * a_step + 1 < result.summary["queries"] + a_step
    assert "the budget of" in result.summary["ended"]
    assert fit(own(tmp_path, max_queries=4 * a_step + 1), epochs=9, resume=True).summary == result.summary
    assert own(tmp_path, max_queries=8 * a_step).fit(epochs=9, resume=True).summary["steps"] > steps


def test_a_budget_that_ends_with_an_epoch_adds_no_record_but_the_look_that_is_due(tmp_path: Path) -> None:
    a_step = 1 + 4 + 5 + 5 + 5 + 5 + 2
    train = [tuple(points(16).tensors)] * 2
    for every, looks in ((1, [True, True]), (3, [False, False, True])):
        folder = tmp_path / str(every)
        result = own(folder, train=train, validate_every=every, max_queries=4 * a_step).fit(epochs=9)
        assert result.summary["steps"] == 4
        epochs = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "epoch"]
        assert ["validation_loss" in record for record in epochs] == looks
        assert (folder / "plot.png").exists()


def test_a_budget_below_one_step_is_refused_before_it() -> None:
    made = own(max_queries=10)
    with pytest.raises(InvalidInputError, match="a step takes 27 queries, but only 10"):
        made.fit(epochs=1)
    assert made.queries == 0


def test_a_finished_run_goes_on_for_more_epochs_with_the_last_weights_not_the_best(tmp_path: Path) -> None:
    whole = own(tmp_path / "whole", train=[tuple(points(16).tensors)] * 3)
    whole.fit(epochs=4)
    part = own(tmp_path / "part", train=[tuple(points(16).tensors)] * 3)
    part.fit(epochs=2)
    part.fit(epochs=4)
    assert without_time(tmp_path / "part" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")
    fresh = own(tmp_path / "fresh", train=[tuple(points(16).tensors)] * 3)
    fresh.fit(epochs=2)
    own(tmp_path / "fresh", train=[tuple(points(16).tensors)] * 3).fit(epochs=4, resume=True)
    assert without_time(tmp_path / "fresh" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")
    one = own(train=[tuple(points(16).tensors)] * 3)
    one.fit(epochs=2)
    one.fit(epochs=4)
    assert torch.equal(one.model[0].weight, whole.model[0].weight)


def test_a_call_that_ends_within_an_epoch_goes_on_there_in_the_next() -> None:
    weights = []
    for parts in ([7], [2, 5, 7]):
        torch.manual_seed(3)
        made = own(validation=None)
        for steps in parts:
            made.fit(steps=steps)
        weights.append(made.model[0].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])


def test_a_call_after_a_stop_adds_to_the_measurements(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    assert fit(made, until=5).stopped == "SIGTERM"
    fit(made)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "step"] == list(range(1, 13))


@pytest.mark.parametrize("before", [None, dz.Team()])
@pytest.mark.parametrize("after", [None, dz.Team()])
def test_a_run_goes_on_with_divided_queries_or_without(
    tmp_path: Path, before: Alone | None, after: Alone | None
) -> None:
    def made(team: Alone | None) -> Trainer:
        model = network()
        return Trainer(model, dz.CGE(model, loss=F.cross_entropy), sgd(model), Batches(), out=tmp_path, team=team)

    assert fit(made(before), epochs=1, until=2).stopped == "SIGTERM"
    assert fit(made(after), epochs=1, resume=True).summary["steps"] == 4


def test_making_a_trainer_draws_nothing_and_starts_no_workers() -> None:
    loader = DataLoader(points(), batch_size=8, shuffle=True, num_workers=1)
    before = torch.get_rng_state()
    own(train=loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert not multiprocessing.active_children()


def test_accuracy_is_told_only_where_outputs_can_only_be_scores_of_classes() -> None:
    """Tokens whose classes come last, and as many of them as there are tokens, would be read the wrong way round."""
    model = nn.Linear(3, 3)

    def of_tokens(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target)

    tokens = [(torch.randn(4, 3, 3), torch.randint(3, (4, 3)))]
    assert set(measured(NetworkObjective(model, of_tokens), tokens)) == {"loss"}
    ignored = [(torch.randn(4, 3), torch.tensor([0, -100, 1, 2]))]
    assert set(measured(NetworkObjective(model, F.cross_entropy), ignored)) == {"loss"}
    classes = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 2]))]
    assert set(measured(NetworkObjective(model, F.cross_entropy), classes)) == {"loss", "accuracy"}


def test_steps_may_end_within_an_epoch(tmp_path: Path) -> None:
    made = own(tmp_path, train=[tuple(points(16).tensors)] * 3)
    result = made.fit(steps=5)
    assert (result.summary["steps"], result.summary["epochs"]) == (5, 1)
    kinds = [(r["kind"], r["step"]) for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch"]
    assert kinds == [("epoch", 3), ("epoch", 5)]


def test_a_dict_is_one_argument_and_a_problem_without_data_has_none() -> None:
    model = nn.Linear(3, 1)
    zo = dz.CGE(model, closure=lambda m, batch: m(batch["x"]).square().mean())
    made = Trainer(model, zo, torch.optim.SGD(model.parameters(), lr=0.1), [{"x": torch.ones(2, 3)}])
    losses = []
    made.callbacks = [lambda _trainer, record: losses.append(record.get("loss"))]
    made.fit(epochs=20)
    assert losses[-2] < 1e-3
    box = nn.Linear(2, 1, bias=False)
    zo = dz.CGE(box, closure=lambda m: m.weight.square().sum())
    result = Trainer(box, zo, torch.optim.SGD(box.parameters(), lr=0.25), None).fit(steps=30)
    assert result.summary["steps"] == 30
    assert box.weight.abs().max().item() < 5e-3  # half a step of the forward difference


def result_of_accuracy(train: list[tuple[Tensor, Tensor]]) -> float:
    return own(train=train, monitor="validation_accuracy").fit(epochs=2).summary["validation_accuracy"]


def test_metrics_are_of_the_whole_split_and_torchmetrics_fit() -> None:
    seen = []

    def odd(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.shape, targets.shape))
        return (outputs.argmax(1) == targets).float().mean()

    train = [tuple(points(16).tensors)]
    result = own(train=train, metrics={"odd": odd}, monitor="validation_odd").fit(epochs=2)
    assert seen == [(torch.Size([40, 2]), torch.Size([40]))] * 2
    assert result.summary["validation_odd"] == pytest.approx(result_of_accuracy(train))


def test_the_test_data_are_looked_at_once_at_the_end(tmp_path: Path) -> None:
    looks = []
    made = own(tmp_path, test=lambda model: looks.append(made.step) or {"accuracy": 0.25})
    summary = made.fit(epochs=2).summary
    assert looks == [made.step]
    assert summary["test_accuracy"] == 0.25
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["test_accuracy"] == 0.25


def test_a_function_looks_at_the_network_in_eval_mode() -> None:
    """With dropout on it would measure another network."""
    modes = []

    def look(model: nn.Module) -> dict[str, float]:
        modes.append([module.training for module in model.modules()])
        return {"loss": 0.5}

    made = own(validation=look, test=look)
    made.model[1].eval()  # a frozen batch norm stays as it is
    made.fit(epochs=1)
    assert len(modes) == 2
    assert not any(map(any, modes))
    assert [module.training for module in made.model] == [True, False, True, True, True]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = own().fit(epochs=1)
    assert result.folder is None
    assert list(tmp_path.iterdir()) == []


def test_resume_auto_begins_or_goes_on(tmp_path: Path) -> None:
    fit(own(tmp_path), epochs=2, until=2, resume="auto")
    rest = own(tmp_path)
    rest.fit(epochs=2, resume="auto")
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_progress_is_shown_on_the_console_given() -> None:
    console = Console(file=io.StringIO(), width=80)
    own(progress=console).fit(epochs=1)
    assert "step 3/3: epoch 1, loss" in console.file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"model": torch.tanh}, "model must be an nn.Module.*dz.minimize"),
        (lambda m: {"estimator": F.cross_entropy}, r"estimator must fill p\.grad.*dz\.CGE"),
        (lambda m: {"optimizer": 0.1}, r"optimizer must be a torch\.optim.*SGD"),
        (lambda m: {"optimizer": torch.optim.LBFGS(m.parameters())}, "LBFGS asks for the loss again"),
        (lambda m: {"optimizer": sgd(network())}, "holds no parameter of this model"),
        (lambda m: {"estimator": fo(network())}, "of another model"),
        (lambda m: {"train": iter([])}, r"can be read only once.*lambda epoch"),
        (lambda m: {"train": 3}, "train must be a DataLoader"),
        (lambda m: {"train": "photos"}, r"train must be batches.*got str.*\[batch\]"),
        (lambda m: {"validation": 3}, "validation must be a DataLoader"),
        (lambda m: {"validation": iter([])}, "validation is a list_iterator, which can be read only once"),
        (lambda m: {"test": {"x": 1}}, "test must be batches.*got dict"),
        (lambda m: {"metrics": "accuracy"}, "metrics must be functions.*got str"),
        (lambda m: {"callbacks": 3}, "callbacks must be a list, got int"),
        (lambda m: {"loggers": "csv"}, r"loggers must be a list, got str; for one alone type loggers=\["),
        (lambda m: {"scheduler": 0.1}, "scheduler must be one of"),
        (lambda m: {"scheduler": torch.optim.lr_scheduler.StepLR(sgd(m), 1)}, "of another optimizer"),
        (
            lambda m: {"optimizer": (o := sgd(m)), "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o)},
            "ReduceLROnPlateau looks at the validation data; give validation=",
        ),
        (lambda m: {"scheduler_interval": "batch"}, "scheduler_interval must be one of epoch, step"),
        (lambda m: {"accumulate": 0}, "accumulate must be an integer of at least 1"),
        (lambda m: {"clip_norm": -1.0}, "clip_norm must be a finite number above 0"),
        (lambda m: {"max_queries": 1.5}, "max_queries must be an integer"),
        (lambda m: {"max_minutes": 0}, "max_minutes must be a finite number above 0"),
        (lambda m: {"mode": "up"}, "mode must be one of auto, max, min"),
        (lambda m: {"callbacks": [EarlyStopping()]}, "give validation="),
        (
            lambda m: {"validation": [], "metrics": {"f1": max}, "monitor": "validation_accuracy"},
            "there are: validation_loss, validation_f1",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(change: Callable[..., Any], message: str) -> None:
    model = network()
    arguments = {"model": model, "estimator": fo(model), "optimizer": sgd(model), "train": Batches()}
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        Trainer(**{**arguments, **change(model)})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({}, InvalidInputError, "say how long to train"),
        ({"epochs": 1, "steps": 2}, InvalidInputError, "say how long to train"),
        ({"epochs": 0}, InvalidInputError, "epochs must be an integer of at least 1"),
        ({"epochs": 1, "resume": True}, InvalidInputError, "resume=True needs the folder"),
    ],
)
def test_calls_of_fit_that_cannot_work(call: dict[str, Any], error: type[InvalidInputError], message: str) -> None:
    with pytest.raises(error, match=message):
        own().fit(**call)


def test_data_without_a_batch_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="gave no batch"):
        own(train=[]).fit(epochs=1)


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    own(tmp_path).fit(epochs=1)
    with pytest.raises(RunFolderError, match=r"resume=True.*out="):
        own(tmp_path).fit(epochs=1)
    with pytest.raises(RunFolderError, match=r"clip_norm: None there, 1\.0 asked"):
        own(tmp_path, clip_norm=1.0).fit(epochs=2, resume=True)
