"""Difference propagation as an evaluator: same bits on any number of workers, one program per shape and mode, budgets."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, estimate, initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import BudgetError, InvalidInputError
from deepzero.evaluators.workers import parallel_map
from deepzero.graph.rules import RULES

X = normal(8, 2, 8, 8, dtype=torch.float32)
Y = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


def network() -> nn.Module:
    return initialize(
        nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3),
        ),
        dtype=torch.float32,
    )  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    return network()


def gradients(model: nn.Module, x: torch.Tensor = X, y: torch.Tensor = Y, **options: Any) -> dict[str, torch.Tensor]:
    return estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(verify=False, **options)).gradients


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("options", [{}, {"memory_budget": 250_000}], ids=["default_budget", "tight_budget"])
def test_the_bits_do_not_depend_on_the_number_of_workers(
    model: nn.Module, workers: int, options: dict[str, int]
) -> None:
    assert_same_bits(gradients(model, workers=1, **options), gradients(model, workers=workers, **options))


@pytest.mark.parametrize("options", [{}, {"memory_budget": 250_000}], ids=["default_budget", "tight_budget"])
def test_every_step_gives_the_same_bits(model: nn.Module, options: dict[str, int]) -> None:
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(**options))
    first = zo.estimate(X, Y).gradients
    assert_same_bits(first, zo.estimate(X, Y).gradients)
    resumed = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
    resumed.load_state_dict(zo.state_dict())
    assert_same_bits(first, resumed.estimate(X, Y).gradients)


def test_chunks_do_not_change_the_numbers(model: nn.Module) -> None:
    assert_close(gradients(model, chunk_bytes=1), gradients(model, chunk_bytes=1 << 24), 1e-5)


def test_thread_counts_are_as_before_and_workers_do_not_pile_up(model: nn.Module) -> None:
    def ours() -> int:
        return sum(thread.name.startswith("deepzero") for thread in threading.enumerate())

    before = torch.get_num_threads()
    gradients(model, workers=3)
    assert torch.get_num_threads() == before
    kept = ours()
    for _ in range(3):
        gradients(model, workers=3)
    assert ours() <= max(kept, 3 + 2)  # those of the last two numbers of workers


def test_no_autograd_inside_workers(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """Checked where it matters: in the thread that runs a rule, on what the rule returns."""
    rule = RULES[torch.ops.aten.linear.default]
    seen: list[tuple[str, bool, bool]] = []

    def spy(call: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = rule(call, *args, **kwargs)
        seen.append((threading.current_thread().name, torch.is_grad_enabled(), outcome.dense().requires_grad))
        return outcome

    monkeypatch.setitem(RULES, torch.ops.aten.linear.default, spy)
    with torch.enable_grad():
        gradients(model, workers=2)
    assert any(name.startswith("deepzero") for name, _, _ in seen)
    assert not any(enabled or requires for _, enabled, requires in seen)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_comes_out_and_stops_the_rest(workers: int) -> None:
    started: list[int] = []

    def work(item: int) -> None:
        started.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=r"item [01]") as raised:
        parallel_map(work, range(1000), workers, torch.device("cpu"))
    assert str(raised.value) == f"item {min(started)}"
    assert len(started) <= workers  # each had begun one when the first failed
    assert parallel_map(lambda i: -i, range(3), workers, torch.device("cpu")) == [0, -1, -2]


def test_an_item_that_was_not_begun_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 0 waits in its thread, just before it would begin, until item 1 has failed."""
    failed = threading.Event()

    class Late(ThreadPoolExecutor):
        def submit(self, function: Any, place: int, item: int) -> Any:  # type: ignore[override]
            return super().submit(lambda: (place == 0 and failed.wait(30), function(place, item))[1])

    def work(item: int) -> int:
        if item == 1:
            threading.Timer(0.1, failed.set).start()
            raise ValueError("item 1")
        return item

    with Late(2) as pool:
        monkeypatch.setattr("deepzero.evaluators.workers._pool", lambda workers: pool)
        with pytest.raises(ValueError, match="item 1"):
            parallel_map(work, range(2), 2, torch.device("cpu"))


def test_a_single_worker_is_the_calling_thread_and_others_are_kept() -> None:
    def thread(_: int) -> int:
        return threading.get_ident()

    here, cpu = threading.get_ident(), torch.device("cpu")
    assert set(parallel_map(thread, range(8), 1, cpu)) == {here}
    found = {one for _ in range(3) for one in parallel_map(thread, range(8), 2, cpu)}
    assert here not in found
    assert len(found) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_makes_workers_of_its_own() -> None:
    both = threading.Barrier(2)
    parallel_map(lambda _: both.wait(100), range(2), 2, torch.device("cpu"))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(100)  # where it waits for its parent's threads, it waits for ever
        os._exit(0 if parallel_map(abs, [-3, -4], 2, torch.device("cpu")) == [3, 4] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_results_keep_their_order() -> None:
    assert parallel_map(lambda i: i * i, range(50), 3, torch.device("cpu")) == [i * i for i in range(50)]


class TestPrograms:
    @pytest.fixture
    def exports(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        calls: list[int] = []
        export = torch.export.export

        def counting(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return export(*args, **kwargs)

        monkeypatch.setattr(torch.export, "export", counting)
        return calls

    def test_exported_once_for_a_shape(self, model: nn.Module, exports: list[int]) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy)
        for _ in range(3):
            zo.backward(X, Y)
        assert len(exports) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: (X[:5], Y[:5]),
            lambda model: (model[1].eval(), (X, Y))[1],
            lambda model: (model[3].weight.requires_grad_(False), (X, Y))[1],
            lambda model: (X[:, :, :, :7].repeat(1, 1, 1, 2)[..., :8], Y),
        ],
        ids=["batch", "mode", "frozen", "values"],
    )
    def test_what_changes_between_steps_is_noticed(self, model: nn.Module, change: Callable[[nn.Module], Any]) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2)
        zo.estimate(X, Y)
        x, y = change(model)
        expected = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator())
        assert_same_bits(zo.estimate(x, y).gradients, expected.gradients)

    def test_a_hyperparameter_changed_between_steps_is_noticed(self) -> None:
        model = initialize(nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3)))
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2)
        zo.estimate(normal(8, 4), Y)
        model[0].p = 0.6
        expected = estimate(model, F.cross_entropy, normal(8, 4), Y, dz.PropagationEvaluator())
        assert_same_bits(zo.estimate(normal(8, 4), Y).gradients, expected.gradients)

    def test_parameters_replaced_between_steps_are_used(self, model: nn.Module) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2)
        zo.estimate(X, Y)
        model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
        assert_same_bits(zo.estimate(X, Y).gradients, gradients(model))

    def test_one_evaluator_for_two_networks(self) -> None:
        """The same shapes and names, another function."""
        evaluator = dz.PropagationEvaluator()
        x = normal(8, 4)
        networks = [initialize(nn.Sequential(nn.Linear(4, 3), layer)) for layer in (nn.Tanh(), nn.ReLU())]
        found = [estimate(m, F.cross_entropy, x, Y, evaluator).gradients for m in networks]
        for model, gradient in zip(networks, found, strict=True):
            assert_close(gradient, estimate(model, F.cross_entropy, x, Y, dz.SequentialEvaluator()).gradients)

    def test_one_evaluator_for_two_losses(self) -> None:
        evaluator, model, x = dz.PropagationEvaluator(), initialize(nn.Linear(4, 3)), normal(8, 4)
        target = F.one_hot(Y, 3).double()
        for loss in (F.cross_entropy, F.mse_loss):
            found = estimate(model, loss, x, target, evaluator)
            assert_close(found.gradients, estimate(model, loss, x, target, dz.SequentialEvaluator()).gradients)


class TestBudget:
    def test_too_small_for_one_query(self, model: nn.Module) -> None:
        with nothing_changes(model), pytest.raises(BudgetError, match=r"an estimate needs .* memory budget") as caught:
            gradients(model, memory_budget=1000)
        least = int(re.search(r"memory_budget=(\d+)", str(caught.value))[1])
        gradients(model, memory_budget=least)
        with pytest.raises(BudgetError):
            gradients(model, memory_budget=least - 1)

    @pytest.mark.parametrize("option", ["memory_budget", "workers", "chunk_bytes"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, "much"])
    def test_bad_options(self, option: str, value: object) -> None:
        with pytest.raises(InvalidInputError, match=f"{option} must be an integer of at least 1"):
            dz.PropagationEvaluator(**{option: value})

    def test_a_tight_budget_gives_the_same_numbers(self, model: nn.Module) -> None:
        assert_close(gradients(model, memory_budget=250_000), gradients(model), 1e-5)


def test_nodes_outside_the_cone_are_never_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature reuse: a perturbation of the last layer runs the last layer and the loss, nothing else."""
    model = network()
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False))
    program = zo.evaluator.program(zo.objective, (X, Y))
    last = [str(step.node.target) for step in program.cones["8.weight"].steps]
    assert last == ["aten.linear.default", "aten.cross_entropy_loss.default"]
    assert len(program.cones["0.weight"].steps) > len(program.cones["3.weight"].steps) > len(last)
    assert program.fallbacks == ()


def test_fallbacks_are_reported() -> None:
    class Accumulated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.logcumsumexp(1)

    model = initialize(nn.Sequential(nn.Linear(4, 4), Accumulated(), nn.Linear(4, 3)))
    zo = dz.CGE(model, loss=F.cross_entropy)
    assert zo.evaluator.program(zo.objective, (normal(8, 4), Y)).fallbacks == ("aten.logcumsumexp.default",)


def test_the_cost_table(model: nn.Module) -> None:
    zo = dz.CGE(model, loss=F.cross_entropy)
    with nothing_changes(model):
        table = zo.evaluator.costs(zo.objective, X, Y, repeats=1)
    seconds = table.seconds_per_query()
    assert seconds.keys() == dict(model.named_parameters()).keys()
    assert all(value > 0 for value in seconds.values())
