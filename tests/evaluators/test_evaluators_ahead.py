"""The base forward of a graph beside the live query: the same bits, wherever the guess of the program is right or wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import deepzero as dz
from deepzero.evaluators import propagated_step
from deepzero.evaluators.propagated_step import ForwardAhead
from deepzero.graph.program import Program

X = normal(8, 6, dtype=torch.float32)
Y = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


class Tempered(nn.Module):
    """A network whose program depends on an attribute, and may draw."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        self.temperature, self.drop = 1.0, drop

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.net(x), self.drop) / self.temperature if self.drop else self.net(x) / self.temperature


def network(drop: float = 0.0) -> Tempered:
    model = Tempered(drop)
    initialize(model, dtype=torch.float32)
    return model


def estimator(model: nn.Module, workers: int, **options: Any) -> dz.Estimator:
    return dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(workers=workers, **options))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads on which graphs ran their base forward, after the first step."""
    threads: list[str] = []
    run = propagated_step.run

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return run(*arguments, **options)

    monkeypatch.setattr(propagated_step, "run", watched)
    return threads


def is_worker(name: str) -> bool:
    return name.startswith("deepzero")


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_from_the_second_step_on_a_worker_runs_it_once_and_the_bits_are_the_same(ran: list[str]) -> None:
    model = network()
    alone, shared = estimator(model, 1), estimator(model, 2)
    for step in range(3):
        expected = alone.estimate(X, Y).gradients
        ran.clear()
        assert same_bits(shared.estimate(X, Y).gradients, expected)
        assert [is_worker(name) for name in ran] == [True] if step else not any(map(is_worker, ran))
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * expected[next(n for n, q in model.named_parameters() if q is p)])


def temper(model: Tempered) -> None:
    model.temperature = 0.25


def freeze(model: Tempered) -> None:
    model.net[0].requires_grad_(False)


def evaluate(model: Tempered) -> None:
    model.eval()


def replace(model: Tempered) -> None:
    model.net[3] = initialize(nn.Linear(5, 3), dtype=torch.float32)


@pytest.mark.parametrize("change", [temper, freeze, evaluate, replace])
def test_a_program_that_changed_meanwhile_gives_what_it_gives_at_first(change: Callable[[Tempered], None]) -> None:
    model = network()
    zo = estimator(model, 2)
    for _ in range(2):
        zo.estimate(X, Y)
    change(model)
    found = zo.estimate(X, Y)
    expected = estimator(model, 1).estimate(X, Y)
    assert torch.equal(found.loss, expected.loss)
    assert found.gradients.keys() == expected.gradients.keys()
    assert same_bits(found.gradients, expected.gradients)


def test_another_batch_begins_nothing_and_a_network_that_draws_never_does(ran: list[str]) -> None:
    zo = estimator(network(), 2)
    for _ in range(2):
        zo.estimate(X, Y)
    ran.clear()
    zo.estimate(X[:5], Y[:5])
    drawing = estimator(network(drop=0.5), 2)
    for _ in range(2):
        drawing.estimate(X, Y)
    assert ran
    assert not any(map(is_worker, ran))


def test_a_mode_of_the_calling_thread_sees_the_forward(ran: list[str]) -> None:
    zo = estimator(network(), 2)
    with FlopCounterMode(display=False):
        for _ in range(2):
            zo.estimate(X, Y)
    assert ran
    assert not any(map(is_worker, ran))


def test_autocast_of_the_calling_thread_changes_no_bit() -> None:
    model = network()
    alone, shared = estimator(model, 1), estimator(model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert same_bits(shared.estimate(X, Y).gradients, alone.estimate(X, Y).gradients)


def test_a_tight_budget_leaves_no_room_for_it(ran: list[str]) -> None:
    zo = estimator(network(), 2, memory_budget=1_000_000)  # for two workers, with nothing left
    for _ in range(2):
        zo.estimate(X, Y)
    assert ran
    assert not any(map(is_worker, ran))


def test_a_forward_that_fails_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    zo = estimator(model, 2)
    expected = zo.estimate(X, Y).gradients
    begun: list[ForwardAhead] = []

    def broken(program: Program, *_: Any) -> ForwardAhead:
        begun.append(ForwardAhead(program, propagated_step.begun(lambda: 1 / 0, 2)))  # type: ignore[arg-type]
        return begun[-1]

    monkeypatch.setattr(ForwardAhead, "of", broken)
    assert same_bits(zo.estimate(X, Y).gradients, expected)
    assert [ahead.values() for ahead in begun] == [None]


def test_an_error_of_the_live_query_comes_out_after_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    zo = estimator(model, 2)
    zo.estimate(X, Y)
    ended = threading.Event()
    monkeypatch.setattr(propagated_step, "run", lambda *_, **__: ended.wait(0.2) or ended.set())
    model.temperature = "none"  # type: ignore[assignment]
    with pytest.raises(TypeError):
        zo.estimate(X, Y)
    assert ended.is_set()
