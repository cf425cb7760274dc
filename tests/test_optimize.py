"""``dz.minimize`` beside SciPy, with noise, bounds, budgets and workers; ``dz.value_and_grad`` beside exact gradients."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.optimize import OptimizeResult
from torch import nn

import deepzero as dz
from deepzero.errors import InvalidInputError, NonFiniteLossError


def bowl(x: Any, centre: float = 3.0) -> float:
    return float(((x - centre) ** 2).sum())


def test_the_default_takes_scipy_s_own_steps() -> None:
    """L-BFGS-B with our central differences goes where it goes with SciPy's three-point ones."""
    start = np.array([-1.2, 1.0, 0.5, -0.3])
    ours = dz.minimize(scipy.optimize.rosen, start)
    theirs = scipy.optimize.minimize(scipy.optimize.rosen, start, method="L-BFGS-B", jac="3-point")
    assert np.allclose(ours.x, theirs.x, atol=1e-4)
    assert ours.fun < 1e-9
    assert abs(ours.nit - theirs.nit) <= 2
    assert ours.success
    assert ours.status == 0
    assert np.allclose(ours.jac, scipy.optimize.rosen_der(ours.x), atol=1e-3)
    assert np.array_equal(start, [-1.2, 1.0, 0.5, -0.3])


def test_calls_are_counted() -> None:
    calls = []

    def counted(x: Any) -> float:
        calls.append(x.copy())
        return bowl(x)

    for options in ({}, {"bounds": (0.0, 2.0)}, {"optimizer": "adam", "max_steps": 5}, {"repeats": 2, "max_steps": 3}):
        calls.clear()
        found = dz.minimize(counted, np.zeros(3), **options)  # type: ignore[arg-type]
        assert found.nfev == len(calls), options


@pytest.mark.parametrize("kind", ["array", "tensor", "dict", "float32"])
def test_a_result_has_the_form_of_the_start(kind: str) -> None:
    starts: dict[str, Any] = {
        "array": np.zeros((2, 2)),
        "tensor": torch.zeros(3, dtype=torch.float64),
        "dict": {"a": np.zeros(2), "b": torch.zeros(1, 2)},
        "float32": torch.zeros(2),
    }
    start = starts[kind]

    def value(x: Any) -> float:
        return sum(map(bowl, x.values())) if isinstance(x, dict) else bowl(x)

    found = dz.minimize(value, start)
    parts = zip(start.values(), found.x.values(), strict=True) if isinstance(start, dict) else [(start, found.x)]
    for before, after in parts:
        assert type(after) is type(before)
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert np.allclose(np.asarray(after), 3.0, atol=1e-2)
        assert float(abs(before).sum()) == 0.0


@pytest.mark.parametrize("start", [[1, 2], [1.0, 2.0], 1.0, np.float64(1), np.ones(2, int)])
def test_numbers_and_lists_become_arrays(start: Any) -> None:
    """As SciPy takes them."""
    found = dz.minimize(bowl, start)
    assert found.x.shape == np.shape(start)
    assert np.allclose(found.x, 3.0, atol=1e-3)
    value, gradient = dz.value_and_grad(bowl)(start)
    assert value == bowl(np.asarray(start))
    assert np.allclose(gradient, 2 * (np.asarray(start) - 3.0))


@pytest.mark.parametrize("start", [np.ones(2, complex), np.array(["1.0", "2.0"]), "1.0"])
def test_other_starts_are_refused(start: Any) -> None:
    """Complex numbers do not lose their imaginary part on the way."""
    with pytest.raises(InvalidInputError, match=r"must hold real numbers|got str"):
        dz.minimize(bowl, start)


def test_a_module_is_moved() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    x, y = torch.randn(10, 2).double(), torch.randn(10, 1).double()

    def loss(p: dict[str, torch.Tensor]) -> float:
        return float((x @ p["weight"].T + p["bias"] - y).square().mean())

    found = dz.minimize(loss, model)
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(10, 1)], dim=1), y).solution
    assert torch.allclose(model.weight, exact[:2].T, atol=1e-4)
    assert torch.equal(found.x["weight"], model.weight)


def test_no_query_leaves_the_bounds() -> None:
    seen = []

    def root(x: Any) -> float:
        seen.append(x.copy())
        return float(np.sqrt(x).sum() + (x[0] - 5.0) ** 2)  # no value below 0

    for options in ({}, {"optimizer": "adam", "lr": 0.3, "max_steps": 60}):
        found = dz.minimize(root, np.array([1.0, 1.0]), bounds=[(0.0, 2.0), (0.0, None)], **options)  # type: ignore[arg-type]
        assert min(point.min() for point in seen) >= 0.0
        assert max(point[0] for point in seen) <= 2.0
        assert found.x == pytest.approx([2.0, 0.0], abs=2e-2), options
        assert found.fun == pytest.approx(root(found.x))
    exact = dz.minimize(bowl, np.zeros(2), bounds=scipy.optimize.Bounds(-1.0, [1.0, 2.0]))
    assert exact.x.tolist() == [1.0, 2.0]
    assert exact.fun == bowl(exact.x)


def test_any_optimizer_of_torch_will_do() -> None:
    def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)

    found = dz.minimize(bowl, np.zeros(2), optimizer=momentum, max_steps=100)
    assert np.allclose(found.x, 3.0, atol=1e-3)
    assert (found.status, found.nit, found.success) == (1, 100, False)
    assert dz.minimize(bowl, np.zeros(2), optimizer="sgd", lr=0.4, max_steps=30).fun < 1e-6


def test_random_directions() -> None:
    found = dz.minimize(bowl, np.zeros(20), method="rge", queries=8, lr=0.1, max_steps=200, seed=1)
    again = dz.minimize(bowl, np.zeros(20), method="rge", queries=8, lr=0.1, max_steps=200, seed=1)
    other = dz.minimize(bowl, np.zeros(20), method="rge", queries=8, lr=0.1, max_steps=200, seed=2)
    assert found.fun < 0.1
    assert np.array_equal(found.x, again.x)
    assert not np.array_equal(found.x, other.x)
    assert found.nfev == 200 * (1 + 2 * 8)


def test_a_noisy_function() -> None:
    """The step follows from the noise, so slopes are not drowned; the value at the end is a mean with its error."""
    generator = np.random.default_rng(0)

    def noisy(x: Any) -> float:
        return bowl(x, 1.0) + 0.01 * generator.normal()

    found = dz.minimize(noisy, np.zeros(3), repeats=4, lr=0.05, max_steps=150)
    assert np.allclose(found.x, 1.0, atol=0.15)
    assert 0.001 < found.standard_error < 0.01
    assert abs(found.fun - bowl(found.x, 1.0)) < 5 * found.standard_error
    assert found.success
    drowned = dz.minimize(noisy, np.zeros(3), repeats=4, lr=0.05, max_steps=150, step=1e-7)
    assert bowl(drowned.x, 1.0) > 10 * bowl(found.x, 1.0)


def test_a_budget_is_not_exceeded() -> None:
    calls = []

    def counted(x: Any) -> float:
        calls.append(1)
        return float(scipy.optimize.rosen(x))

    found = dz.minimize(counted, np.zeros(5), max_queries=50)
    assert found.nfev == len(calls) == 44  # four steps of 11
    assert found.status == 2
    assert not found.success
    assert "max_queries" in found.message
    with pytest.raises(InvalidInputError, match="a step takes 11 queries, more than max_queries=5"):
        dz.minimize(counted, np.zeros(5), max_queries=5)
    assert len(calls) == 44


@pytest.mark.parametrize("options", [{"repeats": 3}, {"bounds": (0.0, 2.0)}, {"repeats": 2, "step": "auto"}])
def test_a_budget_holds_what_the_noise_and_the_result_take(options: dict[str, Any]) -> None:
    calls = []

    def counted(x: Any) -> float:
        calls.append(1)
        return bowl(x)

    for most in range(60, 120, 7):
        calls.clear()
        found = dz.minimize(counted, np.zeros(2), max_queries=most, **options)
        assert found.nfev == len(calls) <= most


def test_a_callback_sees_every_step_and_may_stop() -> None:
    told: list[OptimizeResult] = []

    def callback(intermediate: OptimizeResult) -> None:
        told.append(intermediate)
        if len(told) == 3:
            raise StopIteration

    found = dz.minimize(scipy.optimize.rosen, np.zeros(3), callback=callback)
    assert [one.nit for one in told] == [1, 2, 3]
    assert found.status == 3
    assert told[-1].fun == pytest.approx(scipy.optimize.rosen(told[-1].x), rel=1e-6)
    told.clear()
    found = dz.minimize(bowl, {"a": np.zeros(2)}.get("a"), optimizer="adam", callback=callback)  # type: ignore[arg-type]
    assert (found.nit, found.status) == (3, 3)


def test_workers_and_a_journal(tmp_path: Path) -> None:
    here = dz.minimize(scipy.optimize.rosen, np.zeros(3), max_steps=5)
    with ThreadPoolExecutor(2) as pool:
        there = dz.minimize(scipy.optimize.rosen, np.zeros(3), max_steps=5, workers=pool)
    processes = dz.minimize(scipy.optimize.rosen, np.zeros(3), max_steps=5, workers=2)
    assert np.array_equal(here.x, there.x)
    assert np.array_equal(here.x, processes.x)
    calls = []

    def counted(x: Any, weight: float) -> float:
        calls.append(1)
        return weight * bowl(x)

    with dz.QueryJournal(tmp_path / "answers.sqlite", problem="bowl") as journal:
        first = dz.minimize(counted, np.zeros(2), (2.0,), journal=journal)
        asked = len(calls)
        again = dz.minimize(counted, np.zeros(2), (2.0,), journal=journal)
    assert len(calls) == asked > 0
    assert np.array_equal(first.x, again.x)


keys = []


def with_its_key(x: Any) -> float:
    keys.append(dz.query_key())  # a name of this package is no part of the problem
    return bowl(x)


def test_a_run_with_bounds_that_starts_again_asks_nothing(tmp_path: Path) -> None:
    """The result is asked for once more, exactly on the bounds: by the workers, and from the journal, too."""
    options: dict[str, Any] = {"bounds": (0.0, 2.0), "journal": tmp_path / "answers.sqlite"}
    first = dz.minimize(with_its_key, np.zeros(2), **options)
    asked = len(keys)
    again = dz.minimize(with_its_key, np.zeros(2), **options)
    assert asked == first.nfev == again.nfev == len(keys)
    assert None not in keys
    assert len(set(keys)) == asked
    assert (first.fun, first.x.tolist()) == (again.fun, [2.0, 2.0]) == (2.0, again.x.tolist())


def test_a_journal_given_by_its_path_is_closed_at_the_end(tmp_path: Path) -> None:
    first = dz.minimize(bowl, np.zeros(2), journal=tmp_path / "answers.sqlite")
    again = dz.minimize(bowl, np.zeros(2), journal=tmp_path / "answers.sqlite")  # in use, if it were not closed
    assert np.array_equal(first.x, again.x)


def test_bad_arguments_are_named() -> None:
    for options, said in (
        ({"method": "bfgs"}, "method"),
        ({"optimizer": "newton"}, "optimizer"),
        ({"optimizer": 3}, "optimizer must be a name or a function"),
        ({"method": "rge", "optimizer": "l-bfgs-b"}, "wants a gradient without noise"),
        ({"bounds": [(0, 1)]}, "for each of the 2 entries, got 1"),
        ({"bounds": (1.0, 0.0)}, "bounds of entry 0 are 1 and 0"),
        ({"workers": 0}, "workers"),
        ({"repeats": 0}, "repeats"),
        ({"lr": -1.0, "optimizer": "adam"}, "lr"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            dz.minimize(bowl, np.zeros(2), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="fn must be callable"):
        dz.minimize(3.0, np.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteLossError):
        dz.minimize(lambda x: float("nan"), np.zeros(2))


def test_a_value_and_a_gradient() -> None:
    point = np.array([0.5, 0.2, -0.3])
    value, gradient = dz.value_and_grad(scipy.optimize.rosen)(point)
    assert value == pytest.approx(scipy.optimize.rosen(point))
    assert np.allclose(gradient, scipy.optimize.rosen_der(point), rtol=1e-6)
    x = {"w": torch.tensor([1.0, 2.0]), "b": np.array(0.5)}
    value, slopes = dz.value_and_grad(lambda p, k: k * float((p["w"] ** 2).sum()) + float(p["b"]) ** 3)(x, 2.0)
    assert torch.allclose(slopes["w"], torch.tensor([4.0, 8.0]), atol=1e-2)
    assert slopes["w"].dtype == torch.float32
    assert isinstance(slopes["b"], np.ndarray)
    assert float(slopes["b"]) == pytest.approx(0.75, rel=1e-4)


def test_each_call_draws_directions_of_its_own() -> None:
    point = np.ones(6)
    estimate = dz.value_and_grad(bowl, method="rge", queries=4, seed=3)
    first, second = estimate(point)[1], estimate(point)[1]
    assert not np.array_equal(first, second)
    again = dz.value_and_grad(bowl, method="rge", queries=4, seed=3)
    assert np.array_equal(first, again(point)[1])
    mean = np.mean([estimate(point)[1] for _ in range(400)], axis=0)
    assert np.allclose(mean, -4.0, atol=0.8)
