"""The profile of difference propagation adds up, names operations, and changes nothing."""

import pytest
import torch

from deepzero.graph.rules import RULES, TAKES_RANK_ONE, fallback
from deepzero.measure.cases import Problem, problem
from deepzero.measure.rule_profile import OTHER, _TimedRule, profile
from deepzero.measure.sides import DeepZero
from deepzero.stopwatch import StageStopwatch


@pytest.fixture(scope="module")
def task() -> Problem:
    return problem("digits", batch=4)


@pytest.fixture(scope="module")
def deepzero(task: Problem) -> DeepZero:
    return DeepZero(task)


def test_profile_accounts_for_all_time(task: Problem, deepzero: DeepZero) -> None:
    found = profile(task, deepzero)
    assert sum(found.rules.values()) == pytest.approx(1.0)
    assert sum(p.share for p in found.parameters) == pytest.approx(1.0)
    assert set(found.rules) == {
        "conv2d + _native_batch_norm_legit_functional + relu",
        "conv2d + _native_batch_norm_legit_functional + relu + avg_pool2d",
        "view",
        "linear",
        "cross_entropy_loss",
        OTHER,
    }
    assert [p.name for p in found.parameters] == task.coordinates.names
    assert sum(p.queries for p in found.parameters) == task.coordinates.count
    assert all(p.microseconds > 0 for p in found.parameters)
    assert list(found.rules.values()) == sorted(found.rules.values(), reverse=True)


def test_profiling_leaves_the_program_as_it_is(task: Problem, deepzero: DeepZero) -> None:
    before = deepzero.evaluator.program(deepzero.objective, task.batch)
    rules = [step.rule for cone in before.cones.values() for step in cone.steps]
    profile(task, deepzero)
    after = deepzero.evaluator.program(deepzero.objective, task.batch)
    assert [step.rule for cone in after.cones.values() for step in cone.steps] == rules


def test_a_timed_rule_gets_the_kinds_of_difference_that_the_rule_gets() -> None:
    timed = _TimedRule(RULES[torch.ops.aten.linear.default], "linear", StageStopwatch(["linear"]))
    assert timed in TAKES_RANK_ONE
    assert _TimedRule(fallback, "other", StageStopwatch(["other"])) not in TAKES_RANK_ONE
