"""The peers answer the same queries: their gradients are those of a plain loop, and nobody's network is moved."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from deepzero.measure.cases import Problem, cnn_case, problem
from deepzero.measure.naive_loop import Form
from deepzero.measure.sides import Naive

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import peers

    return peers


@pytest.fixture(scope="module")
def task() -> Problem:
    return problem(cnn_case(1, "digits"), batch=3)


@pytest.mark.parametrize("name", ["DifferencePropagation", "TorchZero", "ScipyDifferences", "Vmap", "PolyStep"])
def test_gradients_are_those_of_a_plain_loop(script: types.ModuleType, task: Problem, name: str) -> None:
    kind = getattr(script, name)
    if not script.installed(kind.package):
        pytest.skip(f"needs {kind.package}")
    peer = kind(task)
    before = [p.detach().clone() for p in peer.model.parameters()]
    queries, gradients = peer.step()
    if name == "PolyStep":
        assert gradients is None
        assert queries > 50
        return
    assert queries == 1 + task.coordinates.count
    assert all(map(torch.equal, before, peer.model.parameters()))
    right = Naive(task, Form(double=True)).answers(task.coordinates) / task.step_size
    found = torch.cat([gradients[name].reshape(-1).double() for name in task.coordinates.names])
    assert (found - right).norm() < 1e-2 * right.norm()


def test_sides_are_compared_round_by_round(script: types.ModuleType, task: Problem) -> None:
    found = script.measured(task, [script.DifferencePropagation(task)], rounds=2, seconds=0.01)
    assert set(found) == {"deepzero", "best plain loop"}
    assert found["deepzero"]["deepzero_over_it"]["rounds"] == (1.0, 1.0)
    assert found["deepzero"]["error"] < 1e-4 < found["best plain loop"]["error"]
    rates = (found[side]["queries_per_second"]["rounds"][0] for side in ("deepzero", "best plain loop"))
    assert found["best plain loop"]["deepzero_over_it"]["rounds"][0] == pytest.approx(next(rates) / next(rates))


def test_what_is_not_installed_is_left_out(script: types.ModuleType) -> None:
    assert script.installed("torch")
    assert not script.installed("no-such-package-anywhere")
