"""Losses by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero.losses import LOSSES, centered_squared_error
from deepzero.models import MLP


def test_the_centered_target_sums_to_zero_and_its_loss_is_the_mean_square() -> None:
    logits = torch.tensor([[0.2, -0.4, 0.1], [1.0, 0.0, -1.0]])
    labels = torch.tensor([2, 0])
    target = torch.tensor([[-1 / 3, -1 / 3, 2 / 3], [2 / 3, -1 / 3, -1 / 3]])
    assert torch.allclose(centered_squared_error(logits, labels), F.mse_loss(logits, target))
    assert centered_squared_error(target, labels) < 1e-12


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_estimated_from_function_values(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = MLP(6, hidden=(5,), num_classes=3).double()
    x = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (7,), generator=generator)
    zo = dz.CGE(model, loss=LOSSES[name], step_size=1e-7)
    zo.backward(x, y)
    exact = torch.autograd.grad(LOSSES[name](model(x), y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), exact, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
