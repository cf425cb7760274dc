"""The chunk plan is arithmetic: checked on numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import nn

import deepzero as dz
from deepzero.errors import BudgetError
from deepzero.graph.footprint import Footprint, footprint
from deepzero.graph.plan import MAX_CHUNK, chunk_sizes, workers_that_fit


def test_chunks_fill_the_target() -> None:
    sizes = chunk_sizes(Footprint(100, {"a": 10, "b": 45, "c": 1}), target=90, budget=10_000)
    assert sizes == {"a": 9, "b": 2, "c": 90}


def test_a_tight_budget_makes_smaller_chunks() -> None:
    assert chunk_sizes(Footprint(100, {"a": 10}), target=90, budget=130) == {"a": 3}


def test_a_query_larger_than_the_target_goes_alone() -> None:
    assert chunk_sizes(Footprint(0, {"a": 500}), target=90, budget=10_000) == {"a": 1}


def test_chunks_are_bounded() -> None:
    assert chunk_sizes(Footprint(0, {"a": 1}), target=1 << 30, budget=1 << 40) == {"a": MAX_CHUNK}


def test_a_budget_below_one_query() -> None:
    with pytest.raises(BudgetError, match="memory_budget=150"):
        chunk_sizes(Footprint(100, {"a": 50}), target=90, budget=149)
    assert chunk_sizes(Footprint(100, {"a": 50}), target=90, budget=150) == {"a": 1}


@pytest.mark.parametrize(("budget", "workers"), [(100 + 90, 1), (100 + 180, 2), (100 + 269, 2), (100 + 900, 4)])
def test_workers_share_what_the_base_leaves(budget: int, workers: int) -> None:
    foot = Footprint(100, {"a": 10, "b": 45})
    assert workers_that_fit(foot, {"a": 9, "b": 2}, budget=budget, most=4) == workers


def test_the_footprint_depends_on_shapes_only() -> None:
    """Not on the values, so that a resumed run cuts the same chunks."""
    feet = []
    for seed in (1, 2):
        model = initialize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), seed=seed)
        zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
        batch = (normal(8, 4, seed=seed), torch.full((8,), seed))
        program = zo.evaluator.program(zo.objective, batch)
        feet.append(footprint(program, zo.evaluator.base_values(program, zo.objective, batch, seed), 1e-2 * seed))
    assert feet[0] == feet[1]
    assert feet[0].queries.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert feet[0].held > 0


def test_the_work_of_a_query_is_what_lies_behind_its_layer() -> None:
    """It depends on shapes only, grows with the batch, and falls with depth."""
    works = []
    for seed, size in ((1, 8), (2, 8), (1, 16)):
        model = initialize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), seed=seed)
        zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
        works.append(zo.evaluator.work(zo.objective, normal(size, 4, seed=seed), torch.full((size,), seed)))
    first, same, larger = works
    assert first == same
    assert first["0.weight"] > first["2.weight"] > 0
    for name in ("0.weight", "2.weight"):
        assert larger[name] > 1.8 * first[name]
