from typing import Any

import pytest
import torch
from patients import LOSS, Branching, Unruled, batch, healthy, seeded
from torch import nn

import deepzero as dz
from deepzero.doctor import diagnose
from deepzero.doctor.operations import Operations, check_operations
from deepzero.errors import InvalidInputError
from deepzero.graph.rules import RULES
from deepzero.graph.rules.fallback import watch_fallbacks


def check(model: Branching | Unruled | nn.Module) -> Operations:
    return check_operations(dz.PropagationEvaluator(), dz.NetworkObjective(model, LOSS), batch())


def test_operations_with_rules_are_counted() -> None:
    found = check(healthy())
    assert found.rules["aten.linear.default"] == 2
    assert found.rules["aten.tanh.default"] == 1
    assert not any("getitem" in name for name in found.rules)
    assert found.fallbacks == {}
    assert found.behind_fallbacks == 0
    assert found.problem is None


def test_fused_operations_are_counted_one_by_one() -> None:
    model = healthy()
    model[2] = nn.ReLU()
    found = check(model)
    assert found.rules["aten.relu.default"] == 1
    assert sum("batch_norm" in name for name in found.rules) == 1


def test_an_operation_without_a_rule_is_listed() -> None:
    found = check(seeded(Unruled(at_the_end=True)))
    assert found.fallbacks == {"aten.logcumsumexp.default": 1}
    assert found.behind_fallbacks == 1


def test_only_the_coordinates_before_a_fallback_are_behind_it() -> None:
    found = check(seeded(Unruled(at_the_end=False)))
    first, last = 6 * 8 + 8, 8 * 3 + 3
    assert found.behind_fallbacks == first / (first + last)


def test_a_model_that_cannot_be_exported_has_a_problem_and_a_way_out() -> None:
    found = check(seeded(Branching()))
    assert "cannot be exported" in found.problem
    assert "SequentialEvaluator" in found.problem
    assert found.rules == found.fallbacks == {}


def with_own_labels(output: Any, y: Any) -> Any:
    return nn.functional.cross_entropy(output, output.argmax(1))


def test_an_operation_whose_rule_falls_back_inside_is_counted_with_the_fallbacks() -> None:
    """Labels that the model gives itself: cross entropy has a rule, but not for them."""
    x, y = batch()
    for loss, name in ((LOSS, "rules"), (with_own_labels, "fallbacks")):
        found = diagnose(healthy(), x, y, loss=loss, seconds=0.1).operations
        assert getattr(found, name)["aten.cross_entropy_loss.default"] == 1
        assert sum("cross_entropy" in operation for operation in (*found.rules, *found.fallbacks)) == 1
        assert found.behind_fallbacks == (name == "fallbacks")
        assert found.rules["aten.linear.default"] == 2


def test_an_operation_that_is_not_watched_any_more_is_not_noted() -> None:
    x, y = batch()
    zo = dz.CGE(healthy(), loss=with_own_labels)
    with watch_fallbacks() as outer:
        with watch_fallbacks() as inner:
            pass
        zo.estimate(x, y)
    assert not inner
    assert "aten.cross_entropy_loss.default" in outer.values()


def stumbles(*args: Any, **kwargs: Any) -> None:
    raise IndexError("a rule that stumbles")


def test_a_rule_that_raises_whatever_it_likes_ends_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the error and where it was raised, and goes on with full forwards."""
    monkeypatch.setitem(RULES, torch.ops.aten.tanh.default, stumbles)
    propagation = dz.PropagationEvaluator()
    found = diagnose(healthy(), *batch(), loss=LOSS, step_size=1e-4, seconds=0.1, evaluator=propagation)
    assert found.operations.problem.startswith(
        "the program's graph cannot be evaluated (IndexError: a rule that stumbles)"
    )
    assert not found.healthy
    assert found.step.evaluator == "sequential"
    assert found.gradients.cosine > 0.99


def test_where_a_rule_raises_operations_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, torch.ops.aten.tanh.default, stumbles)
    found = diagnose(healthy(), *batch(), loss=LOSS, step_size=1e-4, seconds=0.1)
    assert set(found.operations.run_again) == {"0.weight", "1.weight", "1.bias"}
    assert "IndexError: a rule that stumbles" in found.operations.run_again["0.weight"]
    assert found.healthy
    assert found.gradients.cosine > 0.999


def test_a_capture_that_raises_whatever_it_likes_ends_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dz.PropagationEvaluator, "program", stumbles)
    assert "IndexError: a rule that stumbles" in check(healthy()).problem


def test_the_user_s_own_mistake_is_no_fault_of_the_program() -> None:
    """Labels that do not fit the output are refused as they are everywhere."""
    x, y = batch()
    with pytest.raises(InvalidInputError, match="IndexError: Target 5 is out of bounds"):
        diagnose(healthy(), x, y + 5, loss=LOSS, seconds=0.1)
