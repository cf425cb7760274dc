"""Both loops answer as the sequential oracle does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepzero.errors import InvalidInputError, VerificationError
from deepzero.evaluators import SequentialEvaluator, StepQueries
from deepzero.measure.agreement import check
from deepzero.measure.cases import problem
from deepzero.measure.forms import Form
from deepzero.measure.network_stages import split
from deepzero.measure.plain_loops import BlockReuseLoop, NaiveLoop
from deepzero.measure.sides import BlockReuse, DeepZero, Naive
from deepzero.measure.timed_part import one_of_each
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import CoordinatePerturbations

NAMES = ["digits", "cnn", "resnet20"]


@pytest.mark.parametrize(("name", "count"), [("digits", 4), ("cnn", 6), ("resnet20", 12)])
def test_stages_compose_to_the_model_and_own_each_parameter_once(name, count):
    asked = problem(name, batch=3)
    stages = split(asked.model)
    value = asked.batch[0]
    with torch.no_grad():
        for stage in stages:
            value = stage.forward(value)
        assert torch.equal(value, asked.model(asked.batch[0]))
    assert len(stages) == count
    for parameter, _ in asked.model.named_parameters():
        assert sum(stage.owns(parameter) for stage in stages) == 1, parameter


def in_double(asked):
    x, y = asked.batch
    return replace(asked, model=asked.model.double(), batch=(x.double(), y))


def test_a_model_without_a_known_split_is_refused():
    with pytest.raises(InvalidInputError, match="Linear has no known split into stages"):
        split(nn.Linear(2, 2))


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
@pytest.mark.parametrize("name", NAMES)
def test_loops_agree_with_the_oracle(name, loop):
    asked = in_double(problem(name, batch=4))
    chosen = one_of_each(asked.coordinates, 12, seed=1)
    objective = NetworkObjective(asked.model, F.cross_entropy)
    perturbations = CoordinatePerturbations(chosen, parameters_of(objective))
    oracle = SequentialEvaluator().measure(
        StepQueries(objective, asked.batch, perturbations, [asked.step_size], seed=0)
    )
    tested = loop(asked)
    found = [tested.difference(*perturbations.locate(k)) for k in range(len(perturbations))]
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), oracle.differences[0], rtol=0, atol=1e-12)
    assert oracle.differences.count_nonzero() > 6


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
def test_loops_put_every_entry_back_and_leave_the_problem_alone(loop):
    asked = problem("digits", batch=4)
    before = {name: value.clone() for name, value in asked.model.state_dict().items()}
    tested = loop(asked)
    own = {name: value.clone() for name, value in tested.parameters.items()}
    first = [tested.difference("features.0.weight", index) for index in range(5)]
    assert [tested.difference("features.0.weight", index) for index in range(5)] == first
    assert all(torch.equal(own[name], value) for name, value in tested.parameters.items())
    assert all(torch.equal(before[name], value) for name, value in asked.model.state_dict().items())


@pytest.fixture(scope="module")
def sides():
    asked = problem("digits", batch=8)
    return asked, Naive(asked), BlockReuse(asked), DeepZero(asked)


def test_all_sides_agree(sides):
    agreement = check(*sides)
    assert agreement.coordinates == 11
    assert set(agreement.deviation) == {"block_reuse", "deepzero"}
    assert 0 < max(agreement.deviation.values()) <= agreement.tolerance < agreement.largest / 10


def test_a_side_that_computes_something_else_is_found(sides, monkeypatch):
    asked, naive, reuse, deepzero = sides
    monkeypatch.setattr(naive.loop, "step_size", 2 * asked.step_size)
    with pytest.raises(VerificationError, match="and the naive loop disagree on digits"):
        check(asked, naive, reuse, deepzero)


CHANNELS_LAST = Form(channels_last=True, inference_mode=True, onednn=False)


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_moves_the_same_coordinates(name, loop):
    """In double precision all forms give the same differences: a flat index means the same entry in any layout."""
    asked = in_double(problem(name, batch=4))
    pairs = [(n, int(i)) for n, indices in one_of_each(asked.coordinates, 12, seed=1).items() for i in indices]
    plain, other = (loop(asked, form) for form in (Form(), CHANNELS_LAST))
    weight = next(p for p in other.parameters.values() if p.dim() == 4 and min(p.shape[:2]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    expected, found = ([side.difference(*pair) for pair in pairs] for side in (plain, other))
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert sum(value != 0 for value in expected) > 6
