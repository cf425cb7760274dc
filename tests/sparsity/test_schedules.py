"""Schedules are pure functions of (seed, step, epoch, parameters): a resumed run queries the same coordinates."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz
from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext
from deepzero.errors import InvalidInputError
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.sparsity import (
    Alternating,
    DynamicRatios,
    SparsityWarning,
    fo_grasp,
    magnitude,
    masks_from_scores,
    random_coordinates,
    summarize,
    zo_grasp,
)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(5)
    return torch.randn(12, 6, generator=draws), torch.randint(3, (12,), generator=draws)


def context(model: nn.Module, step: int = 0, epoch: int = 0) -> StepContext:
    return StepContext(step, epoch, NetworkObjective(model, F.cross_entropy), data())


RATIOS = {"0.weight": 0.25, "3.weight": 0.5}


def same(one: Coordinates, other: Coordinates) -> bool:
    return one.names == other.names and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", [DynamicRatios(RATIOS), Alternating(0.9)])
def test_schedules_follow_the_protocol(schedule: object) -> None:
    assert isinstance(schedule, CoordinateSchedule)


def test_dynamic_counts_are_exact_and_the_rest_is_queried_in_full() -> None:
    drawn = DynamicRatios(RATIOS).coordinates(context(net()))
    assert {name: drawn[name].numel() for name in drawn} == {
        "0.weight": 15, "0.bias": 10, "1.weight": 10, "1.bias": 10, "3.weight": 15, "3.bias": 3,
    }  # fmt: skip


def test_dynamic_draws_last_for_every_steps() -> None:
    model = net()
    schedule = DynamicRatios(RATIOS, every=3)
    draws = [schedule.coordinates(context(model, step)) for step in range(9)]
    for step in range(1, 9):
        assert same(draws[step], draws[step - 1]) is (step % 3 != 0)


def test_dynamic_draws_by_epoch_do_not_depend_on_the_step() -> None:
    model = net()
    schedule = DynamicRatios(RATIOS, every=2, unit="epoch")
    first = schedule.coordinates(context(model, step=0, epoch=0))
    assert same(schedule.coordinates(context(model, step=700, epoch=1)), first)
    assert not same(schedule.coordinates(context(model, step=701, epoch=2)), first)


def test_dynamic_draws_are_a_pure_function_of_seed_and_index() -> None:
    """In any order, in a fresh object, and whatever the weights: what a resumed run relies on."""
    model = net()
    running, resumed = DynamicRatios(RATIOS, every=1, seed=4), DynamicRatios(RATIOS, every=1, seed=4)
    forward = [running.coordinates(context(model, step)) for step in range(6)]
    backward = [resumed.coordinates(context(net(), step)) for step in reversed(range(6))]
    assert all(same(one, other) for one, other in zip(forward, reversed(backward), strict=True))
    assert not same(DynamicRatios(RATIOS, every=1, seed=5).coordinates(context(model)), forward[0])
    expected = random_coordinates(model, RATIOS, seed=derive_seed(4, "dynamic", 2))
    assert same(forward[2], expected)


def test_dynamic_draws_do_not_touch_the_global_rng() -> None:
    rng = torch.get_rng_state()
    DynamicRatios(RATIOS).coordinates(context(model := net(), 3))
    assert not torch.equal(torch.get_rng_state(), rng)  # the model's initialization did
    rng = torch.get_rng_state()
    DynamicRatios(RATIOS).coordinates(context(model, 3))
    assert torch.equal(torch.get_rng_state(), rng)


def test_dynamic_draws_reach_every_coordinate() -> None:
    model = net()
    schedule = DynamicRatios(RATIOS, every=1)
    seen = torch.zeros(60)
    for step in range(60):
        seen[schedule.coordinates(context(model, step))["0.weight"]] += 1
    assert (seen > 0).all()


def test_one_schedule_serves_models_of_different_shapes() -> None:
    schedule = DynamicRatios({"0.weight": 0.5})
    for width in (4, 10):
        drawn = schedule.coordinates(context(nn.Sequential(nn.Linear(6, width))))
        assert drawn["0.weight"].numel() == 3 * width
        assert drawn["0.bias"].numel() == width


def test_always_leaves_out_what_it_does_not_name() -> None:
    drawn = DynamicRatios(RATIOS, always=["3.bias"]).coordinates(context(net()))
    assert drawn.names == ["0.weight", "3.weight", "3.bias"]


def test_a_layer_without_a_coordinate_keeps_one_and_says_so_once() -> None:
    model = net()
    schedule = DynamicRatios({"0.weight": 0.001}, every=1)
    with pytest.warns(SparsityWarning, match=r"0\.weight"):
        assert schedule.coordinates(context(model, 0))["0.weight"].numel() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert schedule.coordinates(context(model, 1))["0.weight"].numel() == 1


def test_schedules_can_be_copied_and_do_not_share_the_callers_dict() -> None:
    ratios = dict(RATIOS)
    schedule = copy.deepcopy(DynamicRatios(ratios))
    ratios["0.weight"] = 0.5
    assert schedule == DynamicRatios(RATIOS)
    assert schedule.coordinates(context(net()))["0.weight"].numel() == 15


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": 1.5},
        {"unit": "batch"},
        {"ratios": {"0.weight": 0.0}},
        {"ratios": {"0.weight": 1.01}},
        {"ratios": {"0.weight": float("nan")}},
    ],
)
def test_bad_dynamic_ratios_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        DynamicRatios(**({"ratios": RATIOS} | options))


def test_unknown_names_are_refused_at_the_first_step() -> None:
    with pytest.raises(InvalidInputError, match="nowhere"):
        DynamicRatios({"nowhere": 0.5}).coordinates(context(net()))


def test_an_estimator_fills_only_the_drawn_coordinates() -> None:
    model = net()
    schedule = DynamicRatios(RATIOS, every=1, seed=9)
    zo = dz.CGE(model, loss=F.cross_entropy, sparsity=schedule)
    zo.backward(*data())
    masks = schedule.coordinates(context(model)).masks({name: p.shape for name, p in model.named_parameters()})
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert not p.grad[~masks[name]].any()
    assert zo.queries == 1 + sum(int(mask.sum()) for mask in masks.values())


def test_alternating_ranks_at_the_current_parameters_and_batch() -> None:
    model = net()
    schedule = Alternating(0.8, functools.partial(zo_grasp, queries=6), rank="signed", seed=2)
    x, y = data()

    def expected(step: int) -> Coordinates:
        scores = zo_grasp(model, F.cross_entropy, x, y, queries=6, seed=derive_seed(2, "alternating", step))
        return Coordinates.from_masks(masks_from_scores(scores, 0.8, rank="signed"))

    first = schedule.coordinates(context(model))
    assert same(first, expected(0))
    assert first.count == 33 + 18  # 33 of biases and norm, 18 of 90 weights
    with torch.no_grad():
        model[0].weight.neg_()
    moved = schedule.coordinates(context(model, step=1))
    assert same(moved, expected(1))
    assert not same(moved, first)


def test_alternating_takes_any_score_and_works_inside_an_estimator() -> None:
    for score in (fo_grasp, lambda model, *batch, seed: magnitude(model)):
        zo = dz.CGE(net(), loss=F.cross_entropy, sparsity=Alternating(0.8, score))
        zo.backward(*data())
        assert zo.queries == 1 + 33 + 18


def test_bad_alternating_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="sparsity"):
        Alternating(1.0)
    with pytest.raises(InvalidInputError, match="rank"):
        Alternating(0.9, rank="both")
    box = dz.BlackBox(lambda p: 0.0, {"w": torch.zeros(3)})
    with pytest.raises(InvalidInputError, match="DynamicRatios"):
        Alternating(0.9).coordinates(StepContext(0, 0, box, ()))


def test_a_fixed_mask_is_m2() -> None:
    model = net()
    masks = masks_from_scores(magnitude(model), 0.9)
    zo = dz.CGE(model, loss=F.cross_entropy, sparsity=masks)
    zo.backward(*data())
    assert zo.queries == 1 + 33 + 9


def test_the_summary_counts_what_is_kept() -> None:
    model = net()
    summary = summarize(model, DynamicRatios(RATIOS).coordinates(context(model)))
    assert (summary.kept, summary.size) == (63, 123)
    assert [layer.kept for layer in summary.layers] == [15, 10, 10, 10, 15, 3]
    lines = str(summary).splitlines()
    assert len(lines) == 7
    assert "25.00%" in lines[0]
    with pytest.raises(InvalidInputError):
        summarize(nn.Linear(2, 2), Coordinates({"nowhere": torch.tensor([0])}))
