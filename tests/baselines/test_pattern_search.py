"""Pattern search against its definition tried move by move, and what it promises about radius, budget and resuming."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn

from deepzero import baselines
from deepzero.baselines import FastPatternSearch, PatternSearch
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.randomness import derive_seed

NAMES = ("pattern-search", "pattern-search-fast")
EVALUATORS = ("sequential", "batched", "propagation")
MODELS = 5

Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return initialize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)))


def normalized_network() -> nn.Module:
    return initialize(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))


def batch(*shape: int, seed: int = 0) -> Batch:
    return normal(6, *shape, seed=seed), torch.tensor([0, 1, 2, 0, 1, 2])


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(source: Any, batches: Iterator[Batch], steps: int, *, keep_idle: bool = True) -> list[Tensor]:
    """The parameters after every call and plain SGD step with learning rate 1."""
    model = source.objective.model
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    path: list[Tensor] = []
    while len(path) < steps:
        before, data = source.memory["position"], next(batches)
        sgd.zero_grad()
        source.backward(*data)
        sgd.step()
        if keep_idle or source.memory["position"] == 0 or source.memory["position"] < before:
            path.append(flat(model))
    return path


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Oracle:
    """The definition: the moves of a sweep one by one, each a full forward of a changed model."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], *, seed: int, radius: float) -> None:
        self.objective, self.seed, self.radius, self.sweep = NetworkObjective(model, loss), seed, radius, 0

    def moves(self) -> Iterator[Tensor]:
        theta = flat(self.objective.model)
        seed = derive_seed(self.seed, "sweep", self.sweep)
        for number in torch.randperm(2 * len(theta), generator=torch.Generator().manual_seed(seed)).tolist():
            moved = theta.clone()
            moved[number // 2] += self.radius if number % 2 == 0 else -self.radius
            yield moved

    def loss(self, theta: Tensor, data: Batch) -> float:
        sizes = [p.numel() for p in parameters_of(self.objective).values()]
        parts = zip(parameters_of(self.objective).items(), theta.split(sizes), strict=True)
        values = {name: part.reshape(p.shape) for (name, p), part in parts}
        return float(self.objective.evaluate(values, data, seed=0).loss)

    def first(self, data: Batch) -> Tensor | None:
        best = self.loss(flat(self.objective.model), data)
        return next((moved for moved in self.moves() if self.loss(moved, data) < best), None)

    def best_of_several(self, data: Batch) -> Tensor | None:
        current = flat(self.objective.model)
        moves = self.moves()
        while polled := list(itertools.islice(moves, MODELS - 1)):
            winner = min([current, *polled], key=lambda theta: self.loss(theta, data))
            if winner is not current:
                return winner
        return None

    def train(self, rule: str, data: Batch, steps: int) -> list[Tensor]:
        path = []
        for _ in range(steps):
            moved = self.first(data) if rule == "pattern-search" else self.best_of_several(data)
            if moved is None:
                self.radius /= 2
            else:
                torch.nn.utils.vector_to_parameters(moved, self.objective.model.parameters())
            self.sweep += 1
            path.append(flat(self.objective.model))
        return path


def options(name: str, **more: Any) -> dict[str, Any]:
    return {**({} if name == "pattern-search" else {"models": MODELS}), **more}


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("name", NAMES)
def test_the_moves_are_those_of_the_definition(name: str, evaluator: str) -> None:
    data = normal(6, 4), normal(6, 3, seed=1)
    oracle = Oracle(network(), F.mse_loss, seed=3, radius=2.0)
    expected = oracle.train(name, data, 20)
    source = baselines.build(name, network(), loss=F.mse_loss, seed=3, **options(name, radius=2.0, evaluator=evaluator))
    assert equal(train(source, itertools.repeat(data), 20), expected)
    assert (source.memory["radius"], source.memory["sweep"]) == (oracle.radius, oracle.sweep)
    assert len({tuple(theta.tolist()) for theta in expected}) > 10, "the case tests nothing"
    assert oracle.radius < 2.0, "no sweep was fruitless"


@pytest.mark.parametrize("block", [1, 3, 100])
def test_the_block_changes_what_is_evaluated_and_not_what_is_accepted(block: int) -> None:
    def run(block: int) -> tuple[list[Tensor], int]:
        source = PatternSearch(network(), loss=F.cross_entropy, block=block, evaluator="sequential", radius=0.5)
        return train(source, itertools.repeat(batch(4)), 8), source.queries

    (path, queries), (expected, _) = run(block), run(8)
    assert equal(path, expected)
    if block == 100:
        assert queries == 8 * (1 + 2 * 27)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_a_budget_only_interrupts_the_sweep(name: str, budget: int) -> None:
    """On a fixed batch; with polls of one move, so that a budget cuts none."""
    more = {"models": 2} if name == "pattern-search-fast" else {"block": 2}

    def run(queries: int | None) -> list[Tensor]:
        source = baselines.build(
            name, network(), loss=F.cross_entropy, queries=queries, evaluator="sequential", radius=0.5, **more
        )
        return train(source, itertools.repeat(batch(4)), 6, keep_idle=False)

    assert equal(run(budget), run(None))


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_that_is_longer_than_the_budget_goes_on_at_the_next_call(name: str) -> None:
    model = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(model.weight)  # the minimum: no move helps
    source = baselines.build(name, model, loss=F.mse_loss, queries=10, **options(name))
    seen = []
    for _ in range(4):
        model.zero_grad()
        loss = source.backward(torch.eye(4), torch.zeros(4, 3))
        assert not model.weight.grad.any()
        assert float(loss) == 0.0
        seen.append((source.memory["radius"], source.memory["sweep"], source.memory["position"], source.queries))
    assert seen == [(1.0, 0, 10, 11), (1.0, 0, 20, 22), (0.5, 1, 0, 27), (0.5, 1, 10, 38)]


def test_every_sweep_tries_every_move_once_in_another_order() -> None:
    source = PatternSearch(network(), loss=F.cross_entropy)
    parameters = parameters_of(source.objective)
    first = source._order(parameters)
    source.memory = {**source.memory, "sweep": 1}
    second = source._order(parameters)
    assert torch.equal(first.sort().values, torch.arange(2 * 27))
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)
    assert torch.equal(PatternSearch(network(), loss=F.cross_entropy)._order(parameters), first)
    assert not torch.equal(PatternSearch(network(), loss=F.cross_entropy, seed=1)._order(parameters), first)


@pytest.mark.parametrize("name", NAMES)
def test_on_a_convex_quadratic_the_slopes_fall_with_the_radius_and_the_loss_never_rises(name: str) -> None:
    """After a fruitless sweep at 2 r, l(w +- 2 r e_i) >= l(w), so that |g_i| <= A_ii r, with the Hessian A."""
    data = normal(12, 4, seed=1), normal(12, 1, seed=2)
    hessian = 2 * data[0].T @ data[0] / 12
    model = initialize(nn.Linear(4, 1, bias=False))
    source = baselines.build(name, model, loss=F.mse_loss, evaluator="sequential", **options(name))
    losses = []
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    while source.memory["radius"] > 1e-3:
        radius = source.memory["radius"]
        sgd.zero_grad()
        losses.append(float(source.backward(*data)))
        sgd.step()
        if source.memory["radius"] < radius:
            slopes = torch.autograd.grad(F.mse_loss(model(data[0]), data[1]), model.weight)[0][0]
            assert bool((slopes.abs() <= hessian.diagonal() * radius / 2).all())
    assert all(after <= before for before, after in itertools.pairwise(losses))
    best = torch.linalg.lstsq(*data).solution.T
    distance = torch.linalg.vector_norm(model.weight.detach() - best)
    assert distance <= torch.linalg.norm(torch.linalg.inv(hessian), 2) * hessian.diagonal().norm() * 2e-3


@pytest.mark.parametrize("name", NAMES)
def test_on_a_separable_quadratic_it_ends_within_the_final_radius(name: str) -> None:
    target = normal(1, 5, seed=4)
    model = initialize(nn.Linear(5, 1, bias=False))
    source = baselines.build(name, model, loss=F.mse_loss, evaluator="sequential", **options(name))
    data = torch.eye(5, dtype=torch.float64), target.T
    while source.memory["radius"] > 0.01:
        train(source, itertools.repeat(data), 1)
    assert float((model.weight - target).detach().abs().max()) <= source.memory["radius"]


@pytest.mark.parametrize("radius", [1.0, 0.3])
def test_the_sgd_step_makes_exactly_the_move(radius: float) -> None:
    model = initialize(nn.Linear(4, 3), dtype=torch.float32)
    with torch.no_grad():
        model.bias[0] = -0.0
    source = PatternSearch(model, loss=F.cross_entropy, radius=radius)
    x, y = batch(4)
    before = flat(model)
    train(source, itertools.repeat((x.float(), y)), 1)
    changed = (flat(model).view(torch.int32) != before.view(torch.int32)).nonzero().squeeze(1)
    (index,) = changed.tolist()
    assert float(flat(model)[index]) in {float(before[index] + radius), float(before[index] - radius)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_counts_a_call_as_one_forward_whatever_evaluates_it(name: str, training: bool) -> None:
    data = batch(1, 4, 4)
    paths, buffers = [], []
    for evaluator in EVALUATORS:
        model = normalized_network().train(training)
        source = baselines.build(
            name, model, loss=F.cross_entropy, **options(name, evaluator=evaluator, radius=0.5, queries=30)
        )
        expected = normalized_network().train(training)
        with torch.no_grad():
            expected(data[0])
        paths.append(train(source, itertools.repeat(data), 1))
        for (key, found), value in zip(model.named_buffers(), expected.buffers(), strict=True):
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12, msg=key)
        paths[-1] += train(source, itertools.repeat(data), 5)
        buffers.append(torch.cat([b.double().reshape(-1) for b in model.buffers()]))
    assert int(model[1].num_batches_tracked) == (6 if training else 0)
    assert equal(paths[1], paths[0])
    assert equal(paths[2], paths[0])
    for found in buffers[1:]:
        torch.testing.assert_close(found, buffers[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_in_the_middle_of_a_sweep_changes_nothing(name: str) -> None:
    def stream() -> Iterator[Batch]:
        return (batch(4, seed=seed) for seed in itertools.count())

    def make(model: nn.Module) -> Any:
        more = options(name, radius=0.5, queries=3, evaluator="sequential")
        return baselines.build(name, model, loss=F.cross_entropy, seed=5, **more)

    whole = make(network())
    expected = train(whole, stream(), 30)
    halves, batches = make(network()), stream()
    path, state = [], {"memory": {"position": 0}}
    while state["memory"]["position"] == 0 or len(path) < 10:
        path += train(halves, batches, 1)
        state = json.loads(json.dumps(halves.state_dict()))
    kept = halves.state_dict()
    train(make(network()), stream(), 3)
    again = make(halves.objective.model)
    again.load_state_dict(state)
    path += train(again, batches, 30 - len(path))
    assert equal(path, expected)
    assert again.state_dict() == whole.state_dict()
    assert kept == state, "a state that was handed out has changed"


def test_queries_are_counted_once_for_the_base_and_once_for_every_move() -> None:
    """Polls of 2, 4, 8, 16, 32 and 32 moves: the one that holds the accepted move is evaluated to its end."""
    source = PatternSearch(network(), loss=F.cross_entropy, evaluator="sequential", block=2, radius=0.5)
    evaluated = []
    for _ in range(12):
        order = source._order(parameters_of(source.objective)).tolist()
        before, queries = flat(source.objective.model), source.queries
        train(source, itertools.repeat(batch(4)), 1)
        change = flat(source.objective.model) - before
        tried = len(order)
        if bool(change.any()):
            index = int(change.nonzero()[0])
            tried = 1 + order.index(2 * index + int(change[index] < 0))
        ends = (2, 6, 14, 30, len(order))
        evaluated.append(next(end for end in ends if end >= tried))
        assert source.queries - queries == 1 + evaluated[-1]
    assert len(set(evaluated)) > 2, "the case tests nothing"


def test_the_global_generators_are_left_alone() -> None:
    source = PatternSearch(network(), loss=F.cross_entropy)
    before = torch.get_rng_state()
    source.backward(*batch(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("evaluator", ["sequential", "batched"])
def test_a_loss_that_is_not_a_number_is_never_accepted(name: str, evaluator: str) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = output.square().mean()
        return torch.where(output.sum() < 0, value * torch.nan, value)

    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    source = baselines.build(name, model, loss=loss, **options(name, evaluator=evaluator))
    train(source, itertools.repeat((torch.ones(2, 3), torch.zeros(2, 1))), 3)
    assert flat(model).sum().item() >= 0


def test_a_base_loss_that_is_not_a_number_changes_nothing() -> None:
    model = normalized_network()
    source = PatternSearch(model, loss=F.cross_entropy)
    x, y = batch(1, 4, 4)
    state = source.state_dict()
    with pytest.raises(NonFiniteLossError):
        source.backward(x * torch.nan, y)
    assert source.state_dict() == state
    assert all(p.grad is None for p in model.parameters())
    assert int(model[1].num_batches_tracked) == 0


def test_frozen_parameters_are_left_alone() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    source = PatternSearch(model, loss=F.cross_entropy, evaluator="batched", radius=0.5)
    path = train(source, itertools.repeat(batch(4)), 5)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(path[0], path[-1])


def test_the_fast_variant_compares_as_many_models_as_the_samples_leave_room_for() -> None:
    source = FastPatternSearch(network(), loss=F.cross_entropy)
    assert [next(source.sizes(samples)) for samples in (100, 300, 10**6)] == [499, 165, 1]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("pattern-search", {"radius": 0.0}, "radius"),
        ("pattern-search", {"queries": 0}, "queries"),
        ("pattern-search", {"evaluator": "fast"}, "batched, propagation, sequential"),
        ("pattern-search", {"block": 0}, "block"),
        ("pattern-search", {"chunk": 0}, "chunk"),
        ("pattern-search", {"models": 5}, "no option 'models'"),
        ("pattern-search-fast", {"models": 1}, "models must be an integer of at least 2"),
        ("pattern-search-fast", {"block": 5}, "no option 'block'"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        baselines.build(name, network(), loss=F.cross_entropy, **wrong)


def test_a_checkpoint_of_the_other_variant_is_refused() -> None:
    state = PatternSearch(network(), loss=F.cross_entropy).state_dict()
    with pytest.raises(CheckpointError, match="another method"):
        FastPatternSearch(network(), loss=F.cross_entropy).load_state_dict(state)
