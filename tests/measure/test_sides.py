"""The sides of a benchmark: they agree, take their fastest form, and extrapolate as they say."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from deepzero.errors import VerificationError
from deepzero.evaluators.costs import ChunkCost, CostTable
from deepzero.measure.cases import Problem, one_of_each, problem, some_of_each
from deepzero.measure.naive_loop import Form, eager_forms
from deepzero.measure.rounds import Timing
from deepzero.measure.sides import DROP, TRIAL_ROUNDS, BlockReuse, DeepZero, Naive, check_agreement, try_forms


@pytest.fixture(scope="module")
def task() -> Problem:
    return problem("digits", batch=4)


@pytest.fixture(scope="module")
def deepzero(task: Problem) -> DeepZero:
    return DeepZero(task)


def test_naive_extrapolates_by_the_mean_query(task: Problem) -> None:
    timing = Naive(task).time(0.05, 0)
    assert timing.queries == 4955
    assert timing.timed_seconds >= 0.05
    assert timing.seconds == pytest.approx(timing.timed_seconds * 4955 / timing.timed_queries)


def test_block_reuse_weights_blocks_by_their_coordinates(task: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which a query of block i takes i + 1 seconds, the whole takes the weighted sum."""
    side = BlockReuse(task)
    now = [0.0]

    def difference(name: str, index: int) -> None:
        now[0] += side.loop.block_of(name) + 1

    monkeypatch.setattr(side.loop, "difference", difference)
    monkeypatch.setattr(side.loop, "refresh", lambda: now.__setitem__(0, now[0] + 100))
    monkeypatch.setattr("deepzero.stopwatch.time.perf_counter", lambda: now[0])
    timing = side.time(1e-3, 0)
    assert timing.seconds == 100 + 1 * 176 + 2 * 2336 + 3 * 2112 + 4 * 330
    assert timing.timed_queries == 5
    assert timing.timed_seconds == 100 + 1 + 2 + 3 + 4


def test_deepzero_times_the_whole_where_it_fits(deepzero: DeepZero) -> None:
    timing = deepzero.time(deepzero.costs.seconds_per_step(deepzero.counts), 0)
    assert timing.timed_queries % 4955 == 0
    assert timing.seconds == pytest.approx(timing.timed_seconds * 4955 / timing.timed_queries)


def test_an_estimate_that_is_short_enough_is_timed_whole_in_a_round_of_any_length(task: Problem) -> None:
    patient = DeepZero(task, whole_within=60.0)
    assert patient.fraction(1e-6) == 1.0
    assert DeepZero(task, whole_within=1e-9).fraction(1e-6) < 0.01


def test_deepzero_scales_a_part_by_measured_costs(
    task: Problem, deepzero: DeepZero, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a table in which features.4.weight costs all there is, the scale is the inverse of its sampled part."""
    each = {name: 1e-3 if name == "features.4.weight" else 0.0 for name in deepzero.counts}
    table = CostTable(0.5, 1, {n: ChunkCost(0.0, cost, deepzero.chunks[n], 1) for n, cost in each.items()}, 1)
    monkeypatch.setattr(deepzero, "costs", table)
    assert deepzero.fraction(0.5 + 2.305) == 1.0
    assert deepzero.fraction(0.5 + 1.152) == pytest.approx(0.5)
    part = {**task.coordinates, "features.4.weight": torch.arange(576)}
    assert deepzero._extrapolated(1.5, type(task.coordinates)(part)) == pytest.approx(0.5 + 4.0)


def test_a_part_predicts_the_whole_in_queries(deepzero: DeepZero) -> None:
    timing = deepzero.time(1e-6, 0)
    assert timing.queries == 4955
    assert timing.timed_queries < 4955
    assert timing.seconds > timing.timed_seconds


@pytest.fixture(scope="module")
def sides() -> tuple[Naive, BlockReuse, DeepZero]:
    task = problem("digits", batch=8)
    return Naive(task), BlockReuse(task), DeepZero(task)


def test_all_sides_agree(sides: tuple[Naive, BlockReuse, DeepZero]) -> None:
    agreement = check_agreement(sides[0], sides[1:])
    assert agreement.coordinates == 11
    assert set(agreement.deviation) == {"block_reuse", "deepzero"}
    assert 0 < max(agreement.deviation.values()) <= agreement.tolerance < agreement.largest / 10


def test_a_side_that_computes_something_else_is_found(
    sides: tuple[Naive, BlockReuse, DeepZero], monkeypatch: pytest.MonkeyPatch
) -> None:
    naive, reuse, deepzero = sides
    monkeypatch.setattr(naive.loop, "step_size", 2 * naive.problem.step_size)
    with pytest.raises(VerificationError, match="and the naive loop disagree on digits"):
        check_agreement(naive, [reuse, deepzero])


class Known:
    """A loop whose speed is known, and which counts its turns."""

    def __init__(self, *rates: float) -> None:
        self.rates, self.turns = rates, 0

    def time(self, seconds: float, turn: int) -> Timing:
        self.turns += 1
        rate = self.rates[min(turn, len(self.rates) - 1)]
        return Timing(100, 100 / rate, 1, 1 / rate)


def test_the_fastest_form_is_taken_and_all_are_reported() -> None:
    candidates = eager_forms(torch.device("cpu"))
    loops = {form: Known(10.0 + number) for number, form in enumerate(candidates)}
    found = try_forms(loops.__getitem__, candidates)
    assert found.fastest == candidates[-1]
    assert list(found.queries_per_second) == [form.name for form in reversed(candidates)]
    assert list(found.queries_per_second.values()) == pytest.approx([10.0 + k for k in reversed(range(8))])


def test_the_median_of_the_turns_counts_not_the_best_of_them() -> None:
    steady, lucky = Form(), Form(channels_last=True)
    loops = {steady: Known(10.0), lucky: Known(14.0, 9.0, 9.0)}
    found = try_forms(loops.__getitem__, list(loops))
    assert found.fastest == steady
    assert found.queries_per_second == pytest.approx({steady.name: 10.0, lucky.name: 9.0})


def test_a_form_that_is_far_behind_takes_one_turn() -> None:
    slow, fast = Form(onednn=False), Form()
    loops = {slow: Known(1.0), fast: Known(DROP * 1.01)}
    assert try_forms(loops.__getitem__, list(loops)).fastest == fast
    assert (loops[slow].turns, loops[fast].turns) == (1, TRIAL_ROUNDS)


@pytest.mark.parametrize("side", [Naive, BlockReuse])
def test_a_side_runs_in_the_form_that_its_trial_found(
    side: type[BlockReuse] | type[Naive], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = problem("digits", batch=4)
    fast = Form(channels_last=True, onednn=False)

    def slowed(self: Any, seconds: float, turn: int) -> Timing:
        """All forms but one take ten times as long."""
        self.loop.difference("fc.bias", 0)
        return Timing(100, 1.0 if self.form == fast else 10.0, 1, 1.0)

    monkeypatch.setattr(side, "time", slowed)
    found = side(task)
    assert found.form == found.trial.fastest == fast
    assert next(iter(found.trial.queries_per_second)) == fast.name
    assert side(task, Form()).trial is None


def test_a_loop_in_float64_says_so_and_is_exact(task: Problem) -> None:
    single, double = Naive(task, Form()), Naive(task, double=True)
    assert (single.name, double.name) == ("naive", "naive_float64")
    assert double.method.startswith("in float64: ")
    assert double.form.double
    assert double.trial is not None
    assert all("float64" in name for name in double.trial.queries_per_second)
    chosen = one_of_each(task.coordinates, 4, seed=0)
    wide = replace(task, model=copy.deepcopy(task.model).double(), batch=(task.batch[0].double(), task.batch[1]))
    assert torch.equal(double.answers(chosen), Naive(wide, replace(double.form, double=False)).answers(chosen))
    assert 0 < (single.answers(chosen) - double.answers(chosen)).abs().max() < 1e-5


def test_answers_come_in_the_order_of_the_coordinates(task: Problem, deepzero: DeepZero) -> None:
    chosen = some_of_each(task.coordinates, {"fc.bias": 3, "features.0.weight": 2}, seed=1)
    right = Naive(task, Form(double=True)).answers(chosen)
    assert deepzero.answers(chosen).tolist() == pytest.approx(right.tolist(), rel=1e-4)
