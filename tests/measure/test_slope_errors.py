"""The error of slopes tells rounding from the finite step."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deepzero.measure.cases import problem, some_of_each
from deepzero.measure.naive_loop import Form
from deepzero.measure.sides import DeepZero, Naive
from deepzero.measure.slope_errors import derivatives, relative, slope_errors


def test_rounding_and_step_are_told_apart() -> None:
    task = problem("digits", batch=8)
    naive, ours = Naive(task, Form()), DeepZero(task)
    found = slope_errors(task, [naive, ours])
    assert found.coordinates == 4 * 11
    assert found.rounding["deepzero"] < 1e-4 < found.rounding["naive"] < 0.1
    assert found.whole["deepzero"] == pytest.approx(found.whole["exact difference"], rel=1e-2)
    finer = slope_errors(replace(task, step_size=5e-4), [Naive(replace(task, step_size=5e-4), Form())])
    assert finer.whole["exact difference"] < 0.7 * found.whole["exact difference"]
    assert finer.rounding["naive"] > 3 * found.rounding["naive"]


def test_derivatives_are_of_the_chosen_coordinates() -> None:
    task = problem("lora-gpt", batch=2)
    name = "blocks.1.attention.value.up"
    chosen = some_of_each(task.coordinates, {name: 5}, seed=0)
    found = derivatives(task, chosen)
    twin = task.model.double()
    F.cross_entropy(twin(task.batch[0]), task.batch[1]).backward()
    gradient = twin.get_parameter(name).grad
    assert gradient is not None
    assert torch.equal(found, gradient.reshape(-1)[chosen[name]])


def test_relative_error_is_of_the_whole_vector() -> None:
    assert relative(torch.tensor([3.0, 4.5]).double(), torch.tensor([3.0, 4.0]).double()) == pytest.approx(0.1)
