"""Full forwards of several networks at once: the differences of one full forward a query, and exactly 0 where they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, nothing_changes, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero import models
from deepzero.baselines.stacked import StackedEvaluator
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.objective import NetworkObjective
from deepzero.probes import CoordinatePerturbations, RandomPerturbations

LABELS = torch.tensor([0, 1, 2, 0])


def convolutional() -> nn.Module:
    return initialize(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
    )


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("training", [True, False])
def test_it_agrees_with_one_forward_a_query(chunk: int, training: bool) -> None:
    model = convolutional().train(training)
    objective = NetworkObjective(model, F.cross_entropy)
    perturbations = CoordinatePerturbations(some_coordinates(model, most=5), objective.parameters())
    data, offsets = (normal(4, 1, 4, 4), LABELS), [0.5, -0.25]
    expected = dz.SequentialEvaluator().measure(objective, data, perturbations, offsets, seed=7)
    with nothing_changes(model):
        found = StackedEvaluator(chunk=chunk).measure(objective, data, perturbations, offsets, seed=7)
    torch.testing.assert_close(found.differences, expected.differences, rtol=1e-10, atol=1e-13)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(found.buffers[name], value) for name, value in expected.buffers.items())


def dead(model: nn.Module, layer: nn.Module, bias: Tensor) -> NetworkObjective:
    """The network with a unit of ``layer`` that no input activates."""
    with torch.no_grad():
        bias[0] = -1e3
        layer.weight[0] = 0.01
    return NetworkObjective(model, F.cross_entropy)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_what_the_loss_does_not_depend_on_has_the_difference_zero(chunk: int) -> None:
    model = models.build("lenet", in_channels=1, image_size=16)
    objective = dead(model, model.fc1, model.fc1.bias)
    entries = {"fc1.weight": torch.arange(16), "fc2.weight": torch.arange(0, 84 * 120, 120)[:9]}
    perturbations = CoordinatePerturbations(Coordinates(entries), objective.parameters())
    data = normal(9, 1, 16, 16, dtype=torch.float32), torch.arange(9)
    found = StackedEvaluator(chunk=chunk).measure(objective, data, perturbations, [1.0, -1.0], seed=0)
    assert not found.differences.any()


def test_a_base_loss_that_is_not_a_number_is_refused() -> None:
    objective = NetworkObjective(convolutional(), F.cross_entropy)
    perturbations = CoordinatePerturbations(some_coordinates(objective.model, most=1), objective.parameters())
    with pytest.raises(NonFiniteLossError):
        StackedEvaluator().measure(objective, (normal(4, 1, 4, 4) * torch.nan, LABELS), perturbations, [1.0], seed=0)


def test_other_directions_and_objectives_are_refused() -> None:
    objective = NetworkObjective(convolutional(), F.cross_entropy)
    random = RandomPerturbations(2, "gaussian", 0, objective.parameters())
    with pytest.raises(InvalidInputError, match="coordinates"):
        StackedEvaluator().measure(objective, (normal(4, 1, 4, 4), LABELS), random, [1.0], seed=0)


def test_its_state_is_its_chunk() -> None:
    evaluator = StackedEvaluator(chunk=3)
    other = StackedEvaluator()
    other.load_state_dict(evaluator.state_dict())
    assert other.chunk == 3
