import math
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.errors import CheckpointError, NonFiniteLossError
from deepzero.objective import parameters_of
from deepzero.sparsity import DynamicRatios
from deepzero.step_sizes import as_step_size
from deepzero.training import (
    Autograd,
    CheckpointStore,
    JsonLines,
    Scores,
    StopRequest,
    Trainer,
    TrainingConfig,
    evaluate,
    read_metrics,
)


class Batches:
    """Two classes of noisy points; every batch is a function of its epoch and position."""

    def __init__(self, count=4):
        self.count = count

    def __len__(self):
        return self.count

    def batch(self, epoch, index):
        generator = torch.Generator().manual_seed(100 * epoch + index)
        y = torch.randint(2, (8,), generator=generator)
        return torch.randn(8, 3, generator=generator) + 2 * y[:, None], y


def network():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 2))


def sparse_cge(model):
    ratios = DynamicRatios({"0.weight": 0.3, "4.weight": 0.5}, every=1, seed=3)
    return dz.CGE(model, loss=F.cross_entropy, sparsity=ratios, evaluator=dz.SequentialEvaluator(), seed=1)


def rge(model):
    return dz.RGE(model, loss=F.cross_entropy, queries=5, evaluator=dz.SequentialEvaluator(), seed=1)


def fo(model):
    return Autograd(model, loss=F.cross_entropy, seed=1)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


OPEN = []


@pytest.fixture(autouse=True)
def _close_metrics():
    yield
    while OPEN:
        OPEN.pop().close()


def trainer(folder, *, source=fo, optimizer=sgd, batches=None, resume=False, sinks=(), validate=True, **options):
    model = network()
    store = CheckpointStore(folder / "checkpoints", run="test")
    checkpoint = store.load().checkpoint if resume else None
    test = Batches(1).batch(77, 0)
    made = Trainer(
        model=model,
        optimizer=optimizer(model),
        source=source(model),
        batches=batches or Batches(),
        validate=(lambda: evaluate(model, [test], F.cross_entropy)) if validate else None,
        config=TrainingConfig(**{"epochs": 3, "warmup_epochs": 0.5, **options}),
        store=store,
        metrics=JsonLines(folder / "metrics.jsonl", start=checkpoint.state["metrics_bytes"] if checkpoint else 0),
        sinks=sinks,
    )
    OPEN.append(made.metrics)
    if checkpoint:
        made.restore(checkpoint)
    return made


def test_a_spent_budget_ends_a_run_with_everything_saved(tmp_path, monkeypatch):
    """A black box inside of the network says stop; the weights are those of the last whole step."""

    def with_a_black_box(budget):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), dz.Opaque(torch.tanh, queries=2, max_queries=budget), nn.Linear(4, 2))

    a_step = 8 * (1 + 2 * 2)
    monkeypatch.setitem(globals(), "network", lambda: with_a_black_box(3 * a_step + 2 + 10))
    run = trainer(tmp_path, validate=False)
    reason = run.fit(StopRequest())
    assert "max_queries" in reason
    assert run.step == 3
    monkeypatch.setitem(globals(), "network", lambda: with_a_black_box(None))
    again = trainer(tmp_path, validate=False, resume=True)
    assert again.step == 3
    assert torch.equal(again.model[0].weight, run.model[0].weight)
    assert again.model[1].queries == run.model[1].queries
    assert again.fit(StopRequest()) is None
    assert again.step == 12


class StopAfter(StopRequest):
    """Asks to stop once the trainer has made so many steps."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.trainer = None

    @property
    def reason(self):
        return "the test" if self.trainer.step >= self.step else None


def fit(made, *, until=math.inf):
    stop = StopAfter(until)
    stop.trainer = made
    reason = made.fit(stop)
    made.metrics.close()
    return reason


def without_time(path: Path):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(path)]


def bits(made):
    """Every tensor of the newest checkpoint: weights, buffers, optimizer state, selected weights."""
    restored = made.store.load().checkpoint
    return {name: value.numpy().tobytes() for name, value in restored.tensors.items()}


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("source", [sparse_cge, rge, fo])
@pytest.mark.parametrize("cut", [1, 6, 8])  # in the warm-up, within an epoch, at its end
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, source, optimizer, cut):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = trainer(tmp_path / "whole", source=source, optimizer=optimizer)
    assert fit(whole) is None
    part = trainer(tmp_path / "parts", source=source, optimizer=optimizer)
    assert fit(part, until=cut) == "the test"
    torch.rand(5)  # the global generator must not matter
    rest = trainer(tmp_path / "parts", source=source, optimizer=optimizer, resume=True)
    assert rest.step == cut
    assert fit(rest) is None
    assert bits(rest) == bits(whole)
    assert rest.source.state_dict() == whole.source.state_dict()
    assert without_time(tmp_path / "parts" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")
    assert rest.best.scores == whole.best.scores


def test_a_run_killed_after_a_checkpoint_repeats_what_was_not_saved(tmp_path):
    """Measurements after the checkpoint are cut away, not written twice."""
    (tmp_path / "whole").mkdir()
    whole = trainer(tmp_path / "whole")
    fit(whole)
    (tmp_path / "killed").mkdir()
    killed = trainer(tmp_path / "killed", checkpoint_steps=4)
    killed.save()
    for _ in range(6):
        killed._train_step()
        if killed.step == 4:
            killed._end_epoch()
            killed.save()
    killed.metrics.close()
    rest = trainer(tmp_path / "killed", resume=True)
    assert rest.step == 4
    fit(rest)
    assert without_time(tmp_path / "killed" / "metrics.jsonl") == without_time(tmp_path / "whole" / "metrics.jsonl")


def test_time_goes_on_where_it_stopped(tmp_path):
    first = trainer(tmp_path)
    first.started -= 1000
    fit(first, until=2)
    assert 1000 < trainer(tmp_path, resume=True).elapsed() < 1010


def test_records_say_what_happened(tmp_path):
    made = trainer(tmp_path, source=sparse_cge)
    fit(made)
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


def test_the_weights_that_are_best_on_validation_are_kept(tmp_path):
    made = trainer(tmp_path, epochs=4)
    scores = iter([Scores(0.5, 1.0), Scores(0.9, 0.5), Scores(0.9, 0.6), Scores(0.8, 0.1)])
    seen = []

    def validate():
        seen.append(made.model[0].weight.detach().clone())
        return next(scores)

    made.validate = validate
    fit(made)
    assert made.best.epoch == 1
    assert torch.equal(made.best.tensors["0.weight"], seen[1])
    restored = trainer(tmp_path, epochs=4, resume=True)
    assert torch.equal(restored.best.tensors["0.weight"], seen[1])
    assert not torch.equal(restored.model[0].weight, seen[1])


def test_validation_may_be_rarer_than_epochs_but_never_misses_the_last(tmp_path):
    made = trainer(tmp_path, epochs=3, evaluate_every=2)
    fit(made)
    epochs = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record["kind"] == "epoch"]
    assert ["validation_loss" in record for record in epochs] == [False, True, True]


def test_without_validation_nothing_is_selected(tmp_path):
    made = trainer(tmp_path, validate=False)
    fit(made)
    assert made.best is None
    assert trainer(tmp_path, validate=False, resume=True).best is None


def test_the_model_trains_in_train_mode_after_each_validation(tmp_path):
    made = trainer(tmp_path)
    modes = []
    made.model[1].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    fit(made)
    assert modes == ([True] * 4 + [False]) * 3


def test_checkpoints_are_made_by_step(tmp_path):
    made = trainer(tmp_path, checkpoint_steps=5)
    saved = []
    save = made.save

    def note():
        saved.append(made.step)
        save()

    made.save = note
    fit(made)
    assert saved == [0, 5, 10, 12]


def test_checkpoints_are_made_by_the_clock(tmp_path, monkeypatch):
    made = trainer(tmp_path, checkpoint_minutes=5)
    monkeypatch.setattr("deepzero.training.loop.time.monotonic", lambda: 100.0 * made.step)
    fit(made, until=7)
    assert [path.name for path in made.store.paths()] == ["step-00000007", "step-00000006"]


class NanFrom:
    """A source whose loss is not finite from a step on."""

    def __init__(self, model, step):
        self.inner, self.first = fo(model), step

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def backward(self, x, y):
        return self.inner.backward(x * torch.nan if self.inner.step >= self.first else x, y)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_and_advice(tmp_path):
    made = trainer(tmp_path, source=lambda model: NanFrom(model, 6), checkpoint_steps=5)
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 6 \(epoch 2\).*step-00000005.*lower learning rate.*doctor"):
        fit(made)
    kept = made.store.load().checkpoint
    assert kept.step == 5
    assert all(bool(value.isfinite().all()) for value in kept.tensors.values())


def test_weights_that_are_not_finite_are_never_saved_or_selected(tmp_path):
    made = trainer(tmp_path, checkpoint_steps=3)
    step = made.optimizer.step

    def explode():
        step()
        if made.step == 3:
            made.model[0].weight.data.fill_(math.inf)

    made.optimizer.step = explode
    with pytest.raises(NonFiniteLossError, match="step-00000003"):
        fit(made)
    assert made.best is None
    assert made.store.load().checkpoint.step == 3


class Returning:
    """A source that returns a loss of its own making in place of an error."""

    def __init__(self, model, loss):
        self.inner, self.loss = fo(model), loss

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def backward(self, x, y):
        self.inner.backward(x, y)
        return self.loss


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_source_that_returns_a_loss_that_is_not_finite_stops_before_the_step_is_taken(tmp_path, loss):
    made = trainer(tmp_path, source=lambda model: Returning(model, loss))
    start = made.model[0].weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"(?s)step 0 \(epoch 1\): the loss is .*step-00000000"):
        fit(made)
    assert torch.equal(made.model[0].weight, start)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_divergence(tmp_path, loss):
    """The weights are finite, and the training loss is: only the validation split shows that something is wrong."""
    made = trainer(tmp_path, checkpoint_steps=3)
    looks = iter([Scores(0.5, 1.0), Scores(0.9, loss)])
    made.validate = lambda: next(looks)
    with pytest.raises(
        NonFiniteLossError, match=rf"(?s)step 8 .*validation split is {loss}.*step-00000006.*learning rate"
    ):
        fit(made)
    assert made.best.scores == Scores(0.5, 1.0)
    assert made.store.load().checkpoint.step == 6
    assert [r["epoch"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch"] == [0]


def test_the_mean_of_huge_losses_is_a_number(tmp_path):
    made = trainer(tmp_path, source=lambda model: Returning(model, 1e308), epochs=1)
    fit(made)
    (epoch,) = (r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch")
    assert epoch["training_loss"] == 1e308


def test_the_source_is_told_each_epoch_so_that_coordinates_are_drawn_for_it(tmp_path):
    """Every step's gradient lies in the set of its epoch, and the sets differ."""
    ratios = DynamicRatios({"0.weight": 0.3, "4.weight": 0.5}, every=1, unit="epoch", seed=3)

    def drawn_by_epoch(model):
        return dz.CGE(model, loss=F.cross_entropy, sparsity=ratios, evaluator=dz.SequentialEvaluator(), seed=1)

    made = trainer(tmp_path, source=drawn_by_epoch, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    backward, touched = made.source.backward, []

    def note(*batch):
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


def test_a_signal_finishes_the_step_and_saves(tmp_path):
    class Interrupt:
        def write(self, record):
            if record["step"] == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        def close(self):
            pass

    made = trainer(tmp_path, sinks=[Interrupt()])
    with StopRequest() as stop:
        assert made.fit(stop) == "SIGTERM"
    assert made.store.load().checkpoint.step == 5


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    made = trainer(tmp_path)
    made.save()
    made.model[0] = nn.Linear(3, 6)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        made.restore(made.store.load().checkpoint)


def test_a_checkpoint_of_another_step_size_is_refused(tmp_path):
    made = trainer(tmp_path, source=sparse_cge)
    made.save()
    made.source.step_rule = as_step_size(1e-4, order=1)
    with pytest.raises(CheckpointError, match="step_size"):
        made.restore(made.store.load().checkpoint)
