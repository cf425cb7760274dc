from patients import LOSS, Branching, Unruled, batch, healthy, seeded
from torch import nn

import deepzero as dz
from deepzero.doctor.operations import check_operations


def check(model):
    return check_operations(dz.PropagationEvaluator(), dz.NetworkObjective(model, LOSS), batch())


def test_operations_with_rules_are_counted():
    found = check(healthy())
    assert found.rules["aten.linear.default"] == 2
    assert found.rules["aten.tanh.default"] == 1
    assert not any("getitem" in name for name in found.rules)
    assert found.fallbacks == {}
    assert found.behind_fallbacks == 0
    assert found.problem is None


def test_fused_operations_are_counted_one_by_one():
    model = healthy()
    model[2] = nn.ReLU()
    found = check(model)
    assert found.rules["aten.relu.default"] == 1
    assert sum("batch_norm" in name for name in found.rules) == 1


def test_an_operation_without_a_rule_is_listed():
    found = check(seeded(Unruled(at_the_end=True)))
    assert found.fallbacks == {"aten.logcumsumexp.default": 1}
    assert found.behind_fallbacks == 1


def test_only_the_coordinates_before_a_fallback_are_behind_it():
    found = check(seeded(Unruled(at_the_end=False)))
    first, last = 6 * 8 + 8, 8 * 3 + 3
    assert found.behind_fallbacks == first / (first + last)


def test_a_model_that_cannot_be_exported_has_a_problem_and_a_way_out():
    found = check(seeded(Branching()))
    assert "cannot be exported" in found.problem
    assert "SequentialEvaluator" in found.problem
    assert found.rules == found.fallbacks == {}
