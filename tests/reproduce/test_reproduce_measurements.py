"""What the measurements of experiments compute, beside the times, which no test can know."""

from __future__ import annotations

import math

import pytest
import torch

import deepzero as dz
from deepzero import models
from deepzero.evaluators import SequentialEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.cases import digits_batch, noise_batch
from deepzero.reproduce.paper.fig2 import estimate_errors
from deepzero.reproduce.paper.fig3 import compare
from deepzero.reproduce.paper.fig_a6 import SIMULATED, measured
from deepzero.reproduce.paper.schedule_study import cost_table
from deepzero.reproduce.paper.table_a1 import STAGES, STEP_SIZE, OneByOne, propagation, stages

LOSS = LOSSES["cross-entropy"]


@pytest.fixture
def one_by_one():
    """The CNN of depth 1 on ten digits, in float64."""
    model = models.build("simple_cnn", in_channels=1, image_size=8, depth=1).double().train()
    x, y = digits_batch(10, 0)
    return OneByOne(model, (x.double(), y))


def test_queries_one_by_one_are_the_coordinate_wise_estimate(one_by_one):
    sizes = [p.numel() for p in one_by_one.parameters]
    before = [p.detach().clone() for p in one_by_one.parameters]
    found = one_by_one.coordinates([(k, i) for k, size in enumerate(sizes) for i in range(size)])
    assert all(torch.equal(p, q) for p, q in zip(one_by_one.parameters, before, strict=True))
    zo = dz.CGE(one_by_one.model, loss=LOSS, step_size=STEP_SIZE, evaluator=SequentialEvaluator())
    expected = zo.estimate(*one_by_one.batch).gradients
    for (name, p), gradient in zip(one_by_one.model.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, expected[name].reshape(p.shape), rtol=1e-9, atol=1e-10, msg=name)


def test_only_the_chosen_coordinates_are_queried(one_by_one):
    found = one_by_one.coordinates([(0, 3), (3, 5)])
    assert [(k, *g.view(-1).nonzero().squeeze(1).tolist()) for k, g in enumerate(found) if g.any()] == [(0, 3), (3, 5)]


def test_random_queries_one_by_one_are_the_formula(one_by_one, monkeypatch):
    """:math:`\\frac{1}{q} \\sum_i \\frac{\\ell(\\theta + \\mu u_i) - \\ell(\\theta)}{\\mu} u_i`, and the weights stay."""
    drawn = []
    normal = torch.Tensor.normal_

    def noted(self, *args, **kwargs):
        drawn.append(normal(self, *args, **kwargs).clone())
        return self

    before = [p.detach().clone() for p in one_by_one.parameters]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "normal_", noted)
        found = one_by_one.random(3)
    assert all(torch.equal(p, q) for p, q in zip(one_by_one.parameters, before, strict=True))
    directions = [drawn[i : i + len(before)] for i in range(0, len(drawn), len(before))]
    assert len(directions) == 3
    expected = [torch.zeros_like(p) for p in before]
    base = one_by_one.loss()
    for u in directions:
        with torch.no_grad():
            for p, start, v in zip(one_by_one.parameters, before, u, strict=True):
                p.copy_(start + STEP_SIZE * v)
            slope = (one_by_one.loss() - base) / STEP_SIZE
        expected = [total + slope * v / 3 for total, v in zip(expected, u, strict=True)]
    for gradient, formula in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, formula, rtol=1e-9, atol=1e-10)


def test_directions_are_standard_normal_and_others_at_every_query(one_by_one):
    """Many directions recover the gradient, which no other law than one of unit covariance does."""
    model = one_by_one.model
    exact = torch.autograd.grad(LOSS(model(one_by_one.batch[0]), one_by_one.batch[1]), one_by_one.parameters)
    flat = torch.cat([g.reshape(-1) for g in exact])
    d, q = len(flat), 4 * len(flat)
    found = torch.cat([g.reshape(-1) for g in one_by_one.random(q)])
    error = float((found - flat).square().sum() / flat.square().sum())
    assert error == pytest.approx((d + 1) / q, rel=0.5)
    assert float(found @ flat / flat.square().sum()) == pytest.approx(1.0, abs=0.3)


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("method", ["RGE", "CGE"])
def test_stages_are_scaled_to_the_whole_estimate(method, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: next(seconds))
    found = stages(depth=1, method=method, data_name="digits", batch_size=8, queries=5, device="cpu")
    d = sum(p.numel() for p in models.build("simple_cnn", in_channels=1, image_size=8, depth=1).parameters())
    assert (found["d"], found["timed_queries"]) == (d, 5)
    # A clock that goes on by one whenever it is read: every block takes one second.
    blocks = {"directions": 1 if method == "RGE" else 0, "perturbation": 2, "inference": 1, "arithmetic": 1}
    assert {name: found[name] for name in STAGES} == {name: d * n for name, n in blocks.items()}


def test_no_more_queries_are_timed_than_there_are(monkeypatch):
    monkeypatch.setattr(
        "deepzero.reproduce.paper.table_a1.OneByOne.coordinates", lambda self, chosen: asked.extend(chosen)
    )
    asked = []
    found = stages(depth=1, method="CGE", data_name="digits", batch_size=4, queries=10**6, device="cpu")
    assert found["timed_queries"] == found["d"] == len(set(asked)) == len(asked)


@pytest.mark.usefixtures("global_rng_untouched")
def test_estimates_by_propagation_are_timed():
    found = propagation(depth=1, data_name="digits", batch_size=8, repeats=2, device="cpu")
    assert found["d"] == 406
    assert len(found["seconds"]) == 2
    assert min(found["seconds"]) > 0


@pytest.mark.usefixtures("global_rng_untouched")
def test_errors_of_estimates_are_those_of_the_theory():
    """RGE: (d + 1)/q of the squared gradient. CGE: the second derivative along each coordinate, nearly nothing."""
    found = estimate_errors(depth=1, batch_size=16, data_name="digits", estimates=3, device="cpu")
    assert found["d"] == 406
    assert found["theory"] == 407 / 406
    assert len(set(found["RGE"])) == 3
    assert sum(found["RGE"]) / 3 == pytest.approx(407 / 406, rel=0.35)
    assert 0 < found["CGE"] < 1e-2


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_cost_table_has_every_parameter():
    found = cost_table(
        model="simple_cnn", options={"depth": 2}, data="digits", image_size=None, batch_size=8, device="cpu"
    )
    network = models.build("simple_cnn", in_channels=1, image_size=8, depth=2)
    assert found["seconds_per_query"].keys() == dict(network.named_parameters()).keys()
    assert min(found["seconds_per_query"].values()) > 0
    assert found["base"] > 0


@pytest.mark.usefixtures("global_rng_untouched")
def test_workers_are_measured_and_foretold():
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
def test_the_sides_of_the_comparison_agree_and_are_timed():
    found = compare(depth=1, data_name="digits", batch_size=8, rounds=2, seconds=0.1, device="cpu")
    assert found["d"] == 406
    assert found["seconds"].keys() == found["speed_up"].keys() == {"naive", "block_reuse", "deepzero"}
    assert all(len(spread["rounds"]) == 2 and spread["min"] > 0 for spread in found["seconds"].values())
    assert found["speed_up"]["naive"]["median"] == 1.0
    by_hand = found["seconds"]["naive"]["rounds"][0] / found["seconds"]["deepzero"]["rounds"][0]
    assert found["speed_up"]["deepzero"]["rounds"][0] == pytest.approx(by_hand)
    assert all(deviation <= found["tolerance"] for deviation in found["deviation"].values())


def test_the_comparison_of_the_paper_is_on_its_network():
    x, _ = noise_batch(2, 0)
    network = models.build("simple_cnn", depth=5)
    assert network(x).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == 12_610
