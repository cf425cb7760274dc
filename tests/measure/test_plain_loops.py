"""Both loops answer as the sequential oracle does."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.evaluators import SequentialEvaluator, StepQueries
from deepzero.measure.block_reuse import BlockReuseLoop, split
from deepzero.measure.cases import Problem, one_of_each, problem
from deepzero.measure.naive_loop import Form, NaiveLoop, eager_forms, gpu_forms
from deepzero.objective import NetworkObjective, parameters_of
from deepzero.probes import CoordinatePerturbations

NAMES = ["digits", "cnn", "resnet20"]


@pytest.mark.parametrize(("name", "count"), [("digits", 4), ("cnn", 6), ("resnet20", 12)])
def test_blocks_compose_to_the_model_and_own_each_parameter_once(name: str, count: int) -> None:
    task = problem(name, batch=3)
    blocks = split(task.model)
    value = task.batch[0]
    with torch.no_grad():
        for block in blocks:
            value = block.forward(value)
        assert torch.equal(value, task.model(task.batch[0]))
    assert len(blocks) == count
    for parameter, _ in task.model.named_parameters():
        assert sum(block.owns(parameter) for block in blocks) == 1, parameter


def in_double(task: Problem) -> Problem:
    x, y = task.batch
    return replace(task, model=task.model.double(), batch=(x.double(), y))


def test_a_model_without_a_known_split_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Linear has no known split into blocks"):
        split(nn.Linear(2, 2))


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
@pytest.mark.parametrize("name", NAMES)
def test_loops_agree_with_the_oracle(name: str, loop: type[BlockReuseLoop] | type[NaiveLoop]) -> None:
    task = in_double(problem(name, batch=4))
    chosen = one_of_each(task.coordinates, 12, seed=1)
    objective = NetworkObjective(task.model, F.cross_entropy)
    perturbations = CoordinatePerturbations(chosen, parameters_of(objective))
    oracle = SequentialEvaluator().measure(StepQueries(objective, task.batch, perturbations, [task.step_size], seed=0))
    tested = loop(task)
    found = [tested.difference(*perturbations.locate(k)) for k in range(len(perturbations))]
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), oracle.differences[0], rtol=0, atol=1e-12)
    assert oracle.differences.count_nonzero() > 6


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
def test_loops_put_every_entry_back_and_leave_the_problem_alone(loop: type[BlockReuseLoop] | type[NaiveLoop]) -> None:
    task = problem("digits", batch=4)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    tested = loop(task)
    own = {name: value.clone() for name, value in tested.parameters.items()}
    first = [tested.difference("features.0.weight", index) for index in range(5)]
    assert [tested.difference("features.0.weight", index) for index in range(5)] == first
    assert all(torch.equal(own[name], value) for name, value in tested.parameters.items())
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())


CHANNELS_LAST = Form(channels_last=True, inference_mode=True, onednn=False)


@pytest.mark.parametrize("loop", [NaiveLoop, BlockReuseLoop])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_moves_the_same_coordinates(name: str, loop: type[BlockReuseLoop] | type[NaiveLoop]) -> None:
    """In double precision all forms give the same differences: a flat index means the same entry in any layout."""
    task = in_double(problem(name, batch=4))
    pairs = [(n, int(i)) for n, indices in one_of_each(task.coordinates, 12, seed=1).items() for i in indices]
    plain, other = (loop(task, form) for form in (Form(), CHANNELS_LAST))
    weight = next(p for p in other.parameters.values() if p.dim() == 4 and min(p.shape[:2]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    expected, found = ([side.difference(*pair) for pair in pairs] for side in (plain, other))
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert sum(value != 0 for value in expected) > 6


def test_forms_differ_and_only_cpus_have_onednn() -> None:
    names = [form.name for form in eager_forms(torch.device("cpu"))]
    assert len(set(names)) == 8
    assert {form.onednn for form in eager_forms(torch.device("meta"))} == {True}


def test_memory_formats_are_tried_where_they_make_a_difference() -> None:
    cpu = torch.device("cpu")
    assert len(eager_forms(cpu, nn.Conv2d(1, 1, 1))) == 8
    assert not any(form.channels_last for form in eager_forms(cpu, nn.Linear(1, 1)))


def test_a_form_is_active_within_its_block_only() -> None:
    before = torch.backends.mkldnn.enabled
    with Form(inference_mode=True, onednn=False).active():
        assert torch.is_inference_mode_enabled()
        assert not torch.backends.mkldnn.enabled
    assert (torch.is_inference_mode_enabled(), torch.backends.mkldnn.enabled) == (False, before)


def test_the_forms_of_a_gpu_have_names_of_their_own() -> None:
    names = [form.name for form in gpu_forms()]
    assert len(set(names)) == 6
    assert "channels_last, no_grad, cudnn.benchmark, CUDA graph" in names


def test_a_direction_moves_all_parameters_and_is_taken_back() -> None:
    task = in_double(problem("digits", batch=4))
    loop = NaiveLoop(task)
    before = [p.detach().clone() for p in loop.parameters.values()]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in before]
    found = loop.query_along(direction)
    assert all(torch.equal(p, q) for p, q in zip(loop.parameters.values(), before, strict=True))
    with torch.no_grad():
        for p, u in zip(task.model.parameters(), direction, strict=True):
            p.add_(task.step_size * u)
    torch.testing.assert_close(found, F.cross_entropy(task.model(task.batch[0]), task.batch[1]), rtol=1e-12, atol=0)


def test_the_stages_of_a_query_are_watched() -> None:
    stages = []

    def watch(stage: str) -> Any:
        stages.append(stage)
        return nullcontext()

    loop = NaiveLoop(problem("digits", batch=4), watch=watch)
    assert stages == []
    loop.difference("fc.bias", 0)
    assert stages == ["perturbation", "perturbation", "inference", "perturbation"]
