"""Black boxes with a known complaint, examined within a number of queries."""

import json
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from patients import cube

import deepzero as dz
from deepzero.doctor import LoopCosts
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox
from deepzero.stencils import Stencil

START = np.linspace(-1.0, 1.0, 10)


def rosenbrock(x: np.ndarray[Any, Any]) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def box(fn: Callable[..., Any] = rosenbrock, start: np.ndarray[Any, Any] = START) -> BlackBox:
    return dz.BlackBox(fn, start.copy())


def noisy(sigma: float = 3e-3, seed: int = 0) -> Callable[..., Any]:
    draws = np.random.default_rng(seed)
    return lambda x: rosenbrock(x) + sigma * draws.normal()


def texts(diagnosis: Diagnosis, level: str) -> str:
    return " | ".join(finding.text for finding in diagnosis.findings if finding.level == level)


def counted(fn: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: np.ndarray[Any, Any]) -> float | None:
        call.queries += 1
        return fn(x)

    call.queries = 0
    return call


@pytest.mark.parametrize("size", [1, 10, 1000])
@pytest.mark.parametrize("options", [{}, {"stencil": dz.CENTRAL}, {"step_size": "auto"}, {"max_queries": 64}])
@pytest.mark.parametrize("sigma", [0.0, 1e-3])
def test_no_more_queries_are_made_than_were_allowed(size: int, options: dict[str, Any], sigma: float) -> None:
    draws = np.random.default_rng(0)
    fn = counted(lambda x: float((x**2).sum()) + sigma * draws.normal())
    found = dz.diagnose(box(fn, np.ones(size)), learning_rate=1e-3, **options)
    assert fn.queries == found.queries.queries <= options.get("max_queries", 128)
    assert found.queries.queries >= 25
    assert found.sweep.samples >= 1
    json.dumps(found.as_dict(), allow_nan=False)


def test_how_many_is_told_before(caplog: pytest.LogCaptureFixture) -> None:
    def fn(x: np.ndarray[Any, Any]) -> float:
        assert "the doctor asks the black box at most 100 times" in caplog.text
        return float(x.sum())

    with caplog.at_level("INFO", logger="deepzero"):
        found = dz.diagnose(box(fn), max_queries=100)
    assert found.queries.failures == ()


def test_a_good_box() -> None:
    found = dz.diagnose(box())
    assert found.healthy
    assert found.determinism.repeatable
    assert found.queries.drift == 0
    assert found.queries.rounding < 1e-10
    assert 0 < found.queries.fastest <= found.queries.seconds <= found.queries.slowest
    assert found.gradients.layers[0].samples == 10
    assert found.step.as_good
    assert found.verdict.startswith("fit to train: deterministic, gradient error ")


def test_noise_is_measured_and_the_step_follows_from_it() -> None:
    found = dz.diagnose(box(noisy()))
    assert found.determinism.noise == pytest.approx(3e-3, rel=0.6)  # of 8 queries
    assert found.queries.noise_uncertainty == pytest.approx(0.267, abs=1e-3)
    assert found.queries.rounding is None
    assert not found.healthy
    assert found.verdict == f"not fit: the loss is noisy (sd 3e-03): raise the step to {found.step.step_size:.1g}"
    assert dz.diagnose(box(noisy()), step_size=found.step.step_size).healthy


@pytest.mark.parametrize("stencil", [dz.FORWARD, dz.CENTRAL])
def test_the_recommended_step_of_a_noisy_box_gives_the_gradient(stencil: Stencil) -> None:
    found = dz.diagnose(box(noisy()), stencil=stencil)
    exact = torch.func.grad(lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())(torch.tensor(START))
    errors = {}
    for step in (found.step.step_size, found.step.configured):
        estimate = dz.CGE(box(noisy(seed=1)), step_size=step, stencil=stencil).estimate().gradients["x"]
        errors[step] = float((estimate - exact).norm() / exact.norm())
    assert errors[found.step.step_size] < 0.02 < errors[found.step.configured]


def test_more_noise_than_any_step_can_bear_asks_for_repeats() -> None:
    draws = np.random.default_rng(0)
    found = dz.diagnose(box(lambda x: float(x.sum() + 0.01 * draws.normal())))
    assert "repeat each query" in found.verdict
    assert found.step.step_size > 0.05


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (np.random.normal, "NumPy's"),
        (lambda: random.gauss(0, 1), "Python's"),
        (lambda: float(torch.randn(())), "PyTorch's"),
    ],
)
def test_noise_from_a_global_generator_can_be_seeded_away(draw: Callable[..., Any], name: str) -> None:
    before = np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    found = dz.diagnose(box(lambda x: rosenbrock(x) + 0.1 * draw()))
    assert found.queries.reseeded
    assert f"the noise comes from {name} global generator: seed that" in texts(found, "warning")
    assert f"seed {name} global generator in the function" in found.verdict
    after = np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


def test_noise_of_its_own_generator_cannot() -> None:
    found = dz.diagnose(box(noisy()))
    assert found.queries.drawn == ()
    assert found.queries.reseeded is None


def test_a_box_that_remembers_is_found_out() -> None:
    calls = []

    def fn(x: np.ndarray[Any, Any]) -> float:
        calls.append(1)
        return rosenbrock(x) + 1e-3 * (len(calls) > 20)

    found = dz.diagnose(box(fn))
    assert found.queries.drift == pytest.approx(1e-3)
    assert "depends on what was asked before" in texts(found, "warning")
    assert found.verdict.startswith("fit, but the loss depends on what was asked before (by 1e-03)")


def test_a_staircase_is_flat_at_small_steps() -> None:
    found = dz.diagnose(box(lambda x: float(np.round(rosenbrock(x), 1))))
    assert found.verdict == f"not fit: the loss is flat at this step: raise it to {found.sweep.flat_below:.1e} at least"
    assert 1e-3 < found.sweep.flat_below < 0.1
    better = dz.diagnose(box(lambda x: float(np.round(rosenbrock(x), 1))), step_size=found.sweep.flat_below)
    assert better.healthy


def test_the_sweep_looks_where_the_loss_depends_on_something() -> None:
    found = dz.diagnose(box(lambda x: float(x[7] ** 3), np.ones(40)))
    assert found.sweep.samples == 1
    assert found.step is not None
    assert found.step.configured_error < 1e-3


def test_the_sweep_looks_at_the_largest_slopes() -> None:
    def fn(x: np.ndarray[Any, Any]) -> float | None:
        if x[17] > 1.03:
            raise ValueError("beyond the wall")
        return float(10 * x[17] + 0.01 * x.sum())

    assert any("x[17] moved by" in failure for failure in dz.diagnose(box(fn, np.ones(30))).queries.failures)


def test_few_directions_without_an_effect_are_no_verdict_on_all() -> None:
    found = dz.diagnose(box(lambda x: float(x[7] ** 3), np.ones(400)))
    assert found.healthy
    assert "none of the 4 directions that were tried changes the loss" in texts(found, "warning")
    assert "noise" not in texts(found, "warning")


def test_a_loss_that_no_coordinate_changes() -> None:
    assert dz.diagnose(box(lambda x: 1.0)).verdict.startswith("not fit: no coordinate that was tried changes the loss")


def test_failures_are_told_with_their_query_and_end_nothing() -> None:
    def fn(x: np.ndarray[Any, Any]) -> float | None:
        if x.max() > 1.03:
            raise ValueError("beyond the wall")
        return float((x**2).sum())

    found = dz.diagnose(box(fn), step_size=1e-4)
    assert found.healthy
    assert "the black box failed at" in texts(found, "warning")
    assert "x[9] moved by 0.0638): ValueError: beyond the wall" in found.queries.failures[0]
    found = dz.diagnose(box(fn), step_size=0.05)
    assert not found.healthy
    assert "no estimate can be made at the step size 5.0e-02: query" in found.verdict
    assert "(x[9] moved by 0.05): ValueError: beyond the wall; lower the step size" in found.verdict


def test_a_box_that_fails_at_once_is_an_error_and_is_not_asked_again() -> None:
    fn = counted(lambda x: 1 / 0)
    with pytest.raises(
        InvalidInputError, match=r"the black box fails at query 1 \(at the parameters as they are\): Zero"
    ):
        dz.diagnose(box(fn))
    assert fn.queries == 1


def test_the_run_is_forecast_and_priced() -> None:
    found = dz.diagnose(box(), run_steps=50, price_per_query=0.02)
    assert (found.forecast.queries, found.run.steps, found.run.queries) == (11, 50, 550)
    assert found.run.price == pytest.approx(11.0)
    assert found.run.seconds == pytest.approx(550 * found.queries.seconds)
    assert "550 queries and about" in found.verdict
    assert found.verdict.endswith("for 50 steps, price 11.00")
    assert dz.diagnose(box(), budget=200).run.steps == 18


def test_workers_share_the_seconds() -> None:
    with ThreadPoolExecutor(5) as pool:
        found = dz.diagnose(dz.CGE(box(), executor=pool), run_steps=10)
    assert found.forecast.seconds_per_step == pytest.approx(3 * found.queries.seconds)


def test_coordinates_or_random_directions_with_figures() -> None:
    every, some = dz.diagnose(box(), budget=1000).run.methods
    assert (every.method, every.directions, every.queries, every.steps, every.cosine) == ("cge", 10, 11, 90, 1.0)
    assert (some.method, some.directions, some.queries, some.steps) == ("rge", 3, 4, 250)
    assert some.cosine == pytest.approx(math.sqrt(3 / 14))
    assert "take cge: 90 steps of it" in texts(dz.diagnose(box(), budget=1000), "note")
    large = dz.diagnose(box(lambda x: float((x**2).sum()), np.ones(1000)), budget=5000)
    assert "take rge: only 4 steps of cge fit" in texts(large, "note")


def test_random_directions_have_their_own_number() -> None:
    zo = dz.RGE(box(), queries=6, step_size=1e-4)
    found = dz.diagnose(zo, budget=700)
    assert found.forecast.queries == 7
    assert found.run.methods[1].directions == 6
    assert found.run.steps == 100
    assert (zo.step, zo.queries) == (0, 0)


def test_a_function_that_no_process_can_be_sent_is_noted() -> None:
    assert "cannot be sent to other processes" in texts(dz.diagnose(box(lambda x: float(x.sum()))), "note")
    assert "cannot be sent" not in texts(dz.diagnose(box()), "note")


def test_an_epoch_with_a_loop() -> None:
    found = dz.diagnose(cube(), loop=LoopCosts(steps_per_epoch=10, epochs=2))
    assert found.forecast.seconds_per_epoch == pytest.approx(10 * found.forecast.seconds_per_step)


def test_nothing_is_changed() -> None:
    start = START.copy()
    one = dz.BlackBox(rosenbrock, start)
    zo = dz.CGE(one, step_size="auto")
    dz.diagnose(zo, learning_rate=1.0)
    assert (start == START).all()
    assert (zo.step, zo.queries, zo.step_rule.noise) == (0, 0, None)
    assert zo.objective is one


def test_an_objective_of_ones_own_is_a_black_box_too() -> None:
    found = dz.diagnose(Own())
    assert found.healthy
    assert found.queries.sendable == ""


class Own:
    """An objective with the methods of the protocol and no base class."""

    def __init__(self) -> None:
        self.inner = cube()

    def __getattr__(self, name: str) -> Callable[..., Any] | None:
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queries": 10}, "max_queries must be an integer of at least 64, got 10"),
        ({"run_steps": 0}, "run_steps must be an integer of at least 1"),
        ({"budget": 0}, "budget must be an integer of at least 1"),
        ({"budget": 10, "run_steps": 3}, "give run_steps or budget, not both"),
        ({"price_per_query": -1.0}, "price_per_query must be a finite number above 0"),
        ({"sparsity": {}}, "at least one coordinate"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.diagnose(box(), **options)
