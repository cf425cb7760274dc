"""Random directions by ``vmap``: the oracle's numbers, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.evaluators.batched import stacked_losses

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


def test_stacked_losses() -> None:
    """``P`` stacked parameter sets give ``P`` losses in float64."""
    model = initialize(nn.Linear(4, 3))
    objective = dz.NetworkObjective(model, F.cross_entropy)
    stacked = {name: torch.stack([p, 2 * p, 0 * p]) for name, p in objective.parameters().items()}
    x = normal(6, 4)
    losses = stacked_losses(objective, stacked, (x, Y), seed=0)
    assert losses.dtype == torch.float64
    for row, factor in enumerate((1.0, 2.0, 0.0)):
        moved: dict[str, Tensor] = {name: factor * p for name, p in objective.parameters().items()}
        assert float(losses[row]) == pytest.approx(float(objective.evaluate(moved, (x, Y), seed=0).loss), abs=1e-12)


@pytest.mark.parametrize("chunk", [0, -3, 2.0, "all"])
def test_bad_chunk(chunk: object) -> None:
    with pytest.raises(InvalidInputError, match="chunk must be an integer of at least 1"):
        dz.BatchedEvaluator(chunk=chunk)


def test_the_state_holds_the_chunk() -> None:
    evaluator = dz.BatchedEvaluator(chunk=3)
    evaluator.load_state_dict(dz.BatchedEvaluator(chunk=7).state_dict())
    assert evaluator.chunk == 7
