"""Random directions by ``vmap``: the oracle's numbers, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero import models
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.evaluators import StepQueries
from deepzero.objective import parameters_of
from deepzero.probes import CoordinatePerturbations

X, Y = normal(6, 2, 5, 5), torch.tensor([0, 1, 2, 1, 0, 2])


def tied() -> nn.Module:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Flatten(), nn.Linear(50, 3))


def shared() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(50, 3))


NETWORKS = {
    "tied": tied,
    "shared": shared,
    "dropout": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(0.4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(27, 3)),
    "batch_norm": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)),
    "batch_norm_eval": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)).eval(),
    "max_pool": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 2, 1), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_agrees_with_the_oracle(name: str, chunk: int) -> None:
    model = initialize(NETWORKS[name]())
    made = [
        dz.RGE(model, loss=F.cross_entropy, queries=6, step_size=1e-2, evaluator=e)
        for e in (dz.BatchedEvaluator(chunk=chunk), dz.SequentialEvaluator())
    ]
    with nothing_changes(model):
        found, expected = (zo.estimate(X, Y) for zo in made)
    assert_close(found.gradients, expected.gradients)
    for buffer, value in expected.buffers.items():
        assert torch.equal(found.buffers[buffer], value)


def test_frozen_parameters_stay() -> None:
    model = initialize(NETWORKS["batch_norm"]())
    model[0].weight.requires_grad_(False)
    zo = dz.RGE(model, loss=F.cross_entropy, queries=3)
    zo.backward(X, Y)
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None


def test_losses_per_sample() -> None:
    model = initialize(nn.Linear(4, 3))
    found, expected = (
        dz.RGE(model, loss=loss, queries=3).estimate(normal(6, 4), Y)
        for loss in (lambda o, t: F.cross_entropy(o, t, reduction="none"), F.cross_entropy)
    )
    assert_close(found.gradients, expected.gradients)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("training", [True, False])
def test_coordinates_agree_with_one_forward_a_query(chunk: int, training: bool) -> None:
    model = initialize(NETWORKS["batch_norm"]()).train(training)
    model.insert(3, nn.Dropout(0.5))
    objective = dz.NetworkObjective(model, F.cross_entropy)
    perturbations = CoordinatePerturbations(some_coordinates(model, most=5), parameters_of(objective))
    expected = dz.SequentialEvaluator().measure(StepQueries(objective, (X, Y), perturbations, [0.5, -0.25], seed=7))
    with nothing_changes(model):
        found = dz.BatchedEvaluator(chunk=chunk).measure(
            StepQueries(objective, (X, Y), perturbations, [0.5, -0.25], seed=7)
        )
    torch.testing.assert_close(found.differences, expected.differences, rtol=1e-10, atol=1e-13)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(found.buffers[name], value) for name, value in expected.buffers.items())


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_what_the_loss_does_not_depend_on_has_the_difference_zero(chunk: int) -> None:
    """A direct search must tell no effect from the rounding between two kinds of forward."""
    model = models.build("lenet", in_channels=1, image_size=16)
    with torch.no_grad():
        model.fc1.bias[0] = -1e3
        model.fc1.weight[0] = 0.01
    objective = dz.NetworkObjective(model, F.cross_entropy)
    entries = {"fc1.weight": torch.arange(16), "fc2.weight": torch.arange(0, 84 * 120, 120)[:9]}
    perturbations = CoordinatePerturbations(Coordinates(entries), parameters_of(objective))
    data = normal(9, 1, 16, 16, dtype=torch.float32), torch.arange(9)
    found = dz.BatchedEvaluator(chunk=chunk).measure(StepQueries(objective, data, perturbations, [1.0, -1.0], seed=0))
    assert not found.differences.any()


class LayerByLayer:
    """Directions of a kind that no evaluator knows: each moves one parameter, by as much in every entry."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def displace(self, parameters: dict[str, Tensor], k: int, offset: float) -> dict[str, Tensor]:
        return {**parameters, self.names[k]: parameters[self.names[k]] + offset}

    def taken(self, parameters: dict[str, Tensor], offsets: list[float]) -> Tensor:
        return torch.tensor(offsets, dtype=torch.float64).unsqueeze(1).expand(-1, len(self))


def test_jobs_that_move_different_parameters_have_a_base_each() -> None:
    """A step of zero is the difference 0 for every one of them; forwards with other parameters stacked round otherwise."""
    model = initialize(nn.Sequential(nn.Linear(768, 300), nn.Tanh(), nn.Linear(300, 10)), dtype=torch.float32)
    objective = dz.NetworkObjective(model, F.cross_entropy)
    directions = LayerByLayer([name for name in parameters_of(objective) for _ in range(2)])
    data = normal(16, 768, dtype=torch.float32), torch.arange(16) % 10
    found = dz.BatchedEvaluator(chunk=2).measure(StepQueries(objective, data, directions, [0.0, 0.1], seed=0))
    assert not found.differences[0].any()
    assert found.differences[1].any()


def test_a_base_loss_that_is_not_a_number_is_refused() -> None:
    objective = dz.NetworkObjective(initialize(NETWORKS["dropout"]()), F.cross_entropy)
    perturbations = CoordinatePerturbations(some_coordinates(objective.model, most=1), parameters_of(objective))
    with pytest.raises(NonFiniteLossError):
        dz.BatchedEvaluator().measure(StepQueries(objective, (X * torch.nan, Y), perturbations, [1.0], seed=0))


@pytest.mark.parametrize("chunk", [0, -3, 2.0, "all"])
def test_bad_chunk(chunk: object) -> None:
    with pytest.raises(InvalidInputError, match="chunk must be an integer of at least 1"):
        dz.BatchedEvaluator(chunk=chunk)


def test_the_state_holds_the_chunk() -> None:
    evaluator = dz.BatchedEvaluator(chunk=3)
    evaluator.load_state_dict(dz.BatchedEvaluator(chunk=7).state_dict())
    assert evaluator.chunk == 7
