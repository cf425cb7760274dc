"""Results of the measurements of experiments, beside the times, which no test can know."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deepzero as dz
from deepzero import models
from deepzero.evaluators import SequentialEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.cases import CASES, Problem, cnn_case, problem
from deepzero.measure.naive_loop import NaiveLoop
from deepzero.reproduce.paper.fig2 import estimate_errors
from deepzero.reproduce.paper.fig3 import compare
from deepzero.reproduce.paper.fig_a6 import SIMULATED, measured
from deepzero.reproduce.paper.schedule_study import cost_table
from deepzero.reproduce.paper.table_a1 import (
    STAGES,
    STEP_SIZE,
    coordinate_estimate,
    propagation,
    random_estimate,
    stages,
)
from deepzero.stopwatch import StageStopwatch

LOSS = LOSSES["cross-entropy"]


@pytest.fixture
def task() -> Problem:
    """The CNN of depth 1 on ten digits, in float64."""
    found = problem(cnn_case(1, "digits"), batch=10, step_size=STEP_SIZE)
    x, y = found.batch
    return replace(found, model=found.model.double(), batch=(x.double(), y))


@pytest.fixture
def loop(task: Problem) -> NaiveLoop:
    return NaiveLoop(task)


@pytest.fixture
def watch() -> StageStopwatch:
    return StageStopwatch(STAGES)


def values(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def are_equal(parameters: dict[str, Tensor], before: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_queries_one_by_one_are_the_coordinate_wise_estimate(
    task: Problem, loop: NaiveLoop, watch: StageStopwatch
) -> None:
    before = values(loop.parameters)
    pairs = [(name, i) for name, p in loop.parameters.items() for i in range(p.numel())]
    found = coordinate_estimate(loop, pairs, watch)
    assert are_equal(loop.parameters, before)
    zo = dz.CGE(task.model, loss=LOSS, step_size=STEP_SIZE, evaluator=SequentialEvaluator())
    expected = zo.estimate(*task.batch).gradients
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name].reshape(gradient.shape), rtol=1e-9, atol=1e-10, msg=name)


def test_only_the_chosen_coordinates_are_queried(loop: NaiveLoop, watch: StageStopwatch) -> None:
    names = list(loop.parameters)
    chosen = [(names[0], 3), (names[3], 5)]
    found = coordinate_estimate(loop, chosen, watch)
    assert [(name, *g.view(-1).nonzero().squeeze(1).tolist()) for name, g in found.items() if g.any()] == chosen


def test_random_queries_one_by_one_are_the_formula(
    loop: NaiveLoop, watch: StageStopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """:math:`\\frac{1}{q} \\sum_i \\frac{\\ell(\\theta + \\mu u_i) - \\ell(\\theta)}{\\mu} u_i`, and the weights stay."""
    drawn = []
    normal = torch.Tensor.normal_

    def noted(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        drawn.append(normal(self, *args, **kwargs).clone())
        return self

    before = values(loop.parameters)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", noted)
        found = random_estimate(loop, 3, watch)
    assert are_equal(loop.parameters, before)
    directions = [dict(zip(before, drawn[i:], strict=False)) for i in range(0, len(drawn), len(before))]
    assert len(directions) == 3
    expected = {name: torch.zeros_like(p) for name, p in before.items()}
    base = loop.loss()
    for u in directions:
        with torch.no_grad():
            for name, p in loop.parameters.items():
                p.copy_(before[name] + STEP_SIZE * u[name])
            slope = (loop.loss() - base) / STEP_SIZE
        expected = {name: total + slope * u[name] / 3 for name, total in expected.items()}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-10)


def test_directions_are_standard_normal_and_others_at_every_query(
    task: Problem, loop: NaiveLoop, watch: StageStopwatch
) -> None:
    """Many directions recover the gradient, which no other law than one of unit covariance does."""
    x, y = task.batch
    exact = torch.autograd.grad(LOSS(task.model(x), y), list(task.model.parameters()))
    flat = torch.cat([g.reshape(-1) for g in exact])
    d, q = len(flat), 4 * len(flat)
    found = torch.cat([g.reshape(-1) for g in random_estimate(loop, q, watch).values()])
    error = float((found - flat).square().sum() / flat.square().sum())
    assert error == pytest.approx((d + 1) / q, rel=0.5)
    assert float(found @ flat / flat.square().sum()) == pytest.approx(1.0, abs=0.3)


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("method", ["RGE", "CGE"])
def test_stages_are_scaled_to_the_whole_estimate(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10_000))
    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: next(seconds))
    found = stages(depth=1, method=method, data_name="digits", batch_size=8, queries=5, device="cpu")
    d = sum(p.numel() for p in models.build("simple_cnn", in_channels=1, image_size=8, depth=1).parameters())
    assert (found["d"], found["timed_queries"]) == (d, 5)
    moves = 2 if method == "RGE" else 3  # an entry is found, moved, and put back
    # A clock that goes on by one whenever it is read: every block takes one second.
    blocks = {"directions": 1 if method == "RGE" else 0, "perturbation": moves, "inference": 1, "arithmetic": 1}
    assert {name: found[name] for name in STAGES} == {name: d * n for name, n in blocks.items()}


def test_no_more_queries_are_timed_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "deepzero.reproduce.paper.table_a1.coordinate_estimate", lambda loop, chosen, watch: asked.extend(chosen)
    )
    asked = []
    found = stages(depth=1, method="CGE", data_name="digits", batch_size=4, queries=10**6, device="cpu")
    assert found["timed_queries"] == found["d"] == len(set(asked)) == len(asked)


@pytest.mark.usefixtures("global_rng_untouched")
def test_estimates_by_propagation_are_timed() -> None:
    found = propagation(depth=1, data_name="digits", batch_size=8, repeats=2, device="cpu")
    assert found["d"] == 406
    assert len(found["seconds"]) == 2
    assert min(found["seconds"]) > 0


@pytest.mark.usefixtures("global_rng_untouched")
def test_errors_of_estimates_are_those_of_the_theory() -> None:
    """RGE: (d + 1)/q of the squared gradient. CGE: the second derivative along each coordinate, nearly nothing."""
    found = estimate_errors(depth=1, batch_size=16, data_name="digits", estimates=3, device="cpu")
    assert found["d"] == 406
    assert found["theory"] == 407 / 406
    assert len(set(found["RGE"])) == 3
    assert sum(found["RGE"]) / 3 == pytest.approx(407 / 406, rel=0.35)
    assert 0 < found["CGE"] < 1e-2


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_cost_table_has_every_parameter() -> None:
    found = cost_table(
        model="simple_cnn", options={"depth": 2}, data="digits", image_size=None, batch_size=8, device="cpu"
    )
    network = models.build("simple_cnn", in_channels=1, image_size=8, depth=2)
    assert found["seconds_per_query"].keys() == dict(network.named_parameters()).keys()
    assert min(found["seconds_per_query"].values()) > 0
    assert found["base"] > 0


@pytest.mark.usefixtures("global_rng_untouched")
def test_workers_are_measured_and_foretold() -> None:
    found = measured(
        model="resnet8",
        options={"width": 4},
        image_size=8,
        channels=1,
        batch_size=8,
        counts=[1, 2],
        repeats=2,
        device="cpu",
    )
    assert {n: len(seconds) for n, seconds in found["measured"].items()} == {"1": 2, "2": 2}
    assert [int(n) for n in found["simulated"]] == list(SIMULATED)
    assert found["simulated"]["8"] < found["simulated"]["1"]
    assert math.isfinite(sum(found["simulated"].values()))
    assert found["queries"] > 300


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_sides_of_the_comparison_agree_and_are_timed() -> None:
    found = compare(depth=1, data_name="digits", batch_size=8, rounds=2, seconds=0.1, device="cpu")
    assert found["d"] == 406
    assert found["seconds"].keys() == found["speed_up"].keys() == {"naive", "block_reuse", "deepzero"}
    assert all(len(spread["rounds"]) == 2 and spread["min"] > 0 for spread in found["seconds"].values())
    assert found["speed_up"]["naive"]["median"] == 1.0
    by_hand = found["seconds"]["naive"]["rounds"][0] / found["seconds"]["deepzero"]["rounds"][0]
    assert found["speed_up"]["deepzero"]["rounds"][0] == pytest.approx(by_hand)
    assert all(deviation <= found["tolerance"] for deviation in found["deviation"].values())


def test_the_comparison_of_the_paper_is_on_its_network() -> None:
    x, _ = CASES["cnn"].batch(2, 0)
    network = models.build("simple_cnn", depth=5)
    assert network(x).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == 12_610
