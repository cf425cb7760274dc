import pytest
import torch

from deepzero.evaluators.costs import ChunkCost, CostTable
from deepzero.measure.cases import problem
from deepzero.measure.rounds import Spread, Timing, ratio
from deepzero.measure.rule_profile import profile
from deepzero.measure.sides import BlockReuse, DeepZero, Naive


@pytest.fixture(scope="module")
def asked():
    return problem("digits", batch=4)


@pytest.fixture(scope="module")
def deepzero(asked):
    return DeepZero(asked)


def test_naive_extrapolates_by_the_mean_query(asked):
    timing = Naive(asked).time(0.05, 0)
    assert timing.queries == 4955
    assert timing.timed_seconds >= 0.05
    assert timing.seconds == pytest.approx(timing.timed_seconds * 4955 / timing.timed_queries)


def test_block_reuse_weights_blocks_by_their_coordinates(asked, monkeypatch):
    """With a clock by which a query of block i takes i + 1 seconds, the whole takes the weighted sum."""
    side = BlockReuse(asked)
    now = [0.0]

    def difference(name, index):
        now[0] += side.loop.stage_of(name) + 1

    monkeypatch.setattr(side.loop, "difference", difference)
    monkeypatch.setattr(side.loop, "refresh", lambda: now.__setitem__(0, now[0] + 100))
    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: now[0])
    timing = side.time(1e-3, 0)
    assert timing.seconds == 100 + 1 * 176 + 2 * 2336 + 3 * 2112 + 4 * 330
    assert timing.timed_queries == 5
    assert timing.timed_seconds == 100 + 1 + 2 + 3 + 4


def test_deepzero_times_the_whole_where_it_fits(deepzero):
    timing = deepzero.time(deepzero.costs.seconds_per_step(deepzero.counts), 0)
    assert timing.timed_queries % 4955 == 0
    assert timing.seconds == pytest.approx(timing.timed_seconds * 4955 / timing.timed_queries)


def test_deepzero_scales_a_part_by_measured_costs(asked, deepzero, monkeypatch):
    """By a table in which features.4.weight costs all there is, the scale is the inverse of its sampled part."""
    each = {name: 1e-3 if name == "features.4.weight" else 0.0 for name in deepzero.counts}
    table = CostTable(0.5, 1, {n: ChunkCost(0.0, cost, deepzero.chunks[n], 1) for n, cost in each.items()}, 1)
    monkeypatch.setattr(deepzero, "costs", table)
    assert deepzero.fraction(0.5 + 2.305) == 1.0
    assert deepzero.fraction(0.5 + 1.152) == pytest.approx(0.5)
    part = {**asked.coordinates, "features.4.weight": torch.arange(576)}
    assert deepzero._extrapolated(1.5, type(asked.coordinates)(part)) == pytest.approx(0.5 + 4.0)


def test_a_part_predicts_the_whole_in_queries(deepzero):
    timing = deepzero.time(1e-6, 0)
    assert timing.queries == 4955
    assert timing.timed_queries < 4955
    assert timing.seconds > timing.timed_seconds


def test_profile_accounts_for_all_time(asked, deepzero):
    found = profile(asked, deepzero)
    assert sum(found.rules.values()) == pytest.approx(1.0)
    assert sum(p.share for p in found.parameters) == pytest.approx(1.0)
    assert {"convolution", "linear", "cross_entropy"} <= set(found.rules)
    assert [p.name for p in found.parameters] == asked.coordinates.names
    assert sum(p.queries for p in found.parameters) == asked.coordinates.count
    assert all(p.microseconds > 0 for p in found.parameters)
    assert list(found.rules.values()) == sorted(found.rules.values(), reverse=True)


def test_profiling_leaves_the_program_as_it_is(asked, deepzero):
    before = deepzero.evaluator.program(deepzero.objective, asked.batch)
    rules = [step.rule for cone in before.cones.values() for step in cone.steps]
    profile(asked, deepzero)
    after = deepzero.evaluator.program(deepzero.objective, asked.batch)
    assert [step.rule for cone in after.cones.values() for step in cone.steps] == rules


def test_ratios_are_taken_round_by_round():
    slow = [Timing(10, 10.0, 1, 1.0), Timing(10, 20.0, 1, 2.0), Timing(10, 40.0, 1, 4.0)]
    fast = [Timing(10, 1.0, 10, 1.0), Timing(10, 1.0, 10, 1.0), Timing(10, 8.0, 10, 8.0)]
    assert ratio(fast, slow) == Spread(median=10.0, min=5.0, max=20.0, rounds=(10.0, 20.0, 5.0))
