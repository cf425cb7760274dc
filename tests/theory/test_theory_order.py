"""Coordinate estimates: exact where the theory says so, and of the stated order in the step elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn

import deepzero as dz

EVALUATORS = [dz.SequentialEvaluator, dz.PropagationEvaluator]
X, Y = normal(5, 4), normal(5, 3, seed=1)
SLOPE = np.array([1.0, -2.0, 0.5])


def linear(params: dict[str, np.ndarray]) -> float:
    return float(SLOPE @ params["w"]) + 4


def quadratic(params: dict[str, np.ndarray]) -> float:
    return float(SLOPE @ params["w"] ** 2 + params["w"].sum() ** 2)


def cubic(params: dict[str, np.ndarray]) -> float:
    return float((params["w"] ** 3).sum())


START = np.array([0.3, -1.0, 2.0])


def gradient(fn: object, stencil: dz.Stencil, step_size: float) -> Tensor:
    return dz.CGE(dz.BlackBox(fn, {"w": START.copy()}), step_size=step_size, stencil=stencil).estimate().gradients["w"]


def test_forward_is_exact_on_linear_functions() -> None:
    torch.testing.assert_close(gradient(linear, dz.FORWARD, 0.7), torch.from_numpy(SLOPE), rtol=1e-13, atol=0)


def test_central_is_exact_on_quadratic_functions() -> None:
    exact = torch.from_numpy(2 * SLOPE * START + 2 * START.sum())
    torch.testing.assert_close(gradient(quadratic, dz.CENTRAL, 0.7), exact, rtol=1e-13, atol=0)


def test_the_error_is_what_taylor_says() -> None:
    """Forward on a quadratic errs by ``mu f''/2``, central on a cubic by ``mu^2 f'''/6``."""
    error = gradient(quadratic, dz.FORWARD, 0.1) - torch.from_numpy(2 * SLOPE * START + 2 * START.sum())
    torch.testing.assert_close(error, torch.from_numpy(0.1 * (SLOPE + 1)), rtol=1e-10, atol=0)
    error = gradient(cubic, dz.CENTRAL, 0.1) - torch.from_numpy(3 * START**2)
    torch.testing.assert_close(error, torch.full((3,), 0.01, dtype=torch.float64), rtol=1e-10, atol=0)


def smooth_network() -> nn.Sequential:
    return initialize(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3)))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("stencil", [dz.FORWARD, dz.CENTRAL], ids=lambda s: s.name)
def test_measured_order_on_a_network(stencil: dz.Stencil, evaluator: type) -> None:
    model = smooth_network()
    loss = F.cross_entropy
    target = torch.tensor([0, 1, 2, 1, 0])
    names = [name for name, _ in model.named_parameters()]
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model(X), target), list(model.parameters()))])
    errors = []
    for step in (2e-2, 1e-2):
        found = dz.CGE(model, loss=loss, step_size=step, stencil=stencil, evaluator=evaluator()).estimate(X, target)
        errors.append(float((torch.cat([found.gradients[n].reshape(-1) for n in names]) - exact).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(stencil.order, abs=0.1)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_central_is_exact_on_least_squares(evaluator: type) -> None:
    model = initialize(nn.Linear(4, 3))
    exact = torch.autograd.grad(F.mse_loss(model(X), Y), list(model.parameters()))
    found = dz.CGE(model, loss=F.mse_loss, step_size=1.0, stencil=dz.CENTRAL, evaluator=evaluator()).estimate(X, Y)
    for value, expected in zip(found.gradients.values(), exact, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_forward_is_exact_on_a_linear_network() -> None:
    model = initialize(nn.Linear(4, 3))
    exact = torch.autograd.grad((model(X) * Y).sum(), list(model.parameters()))
    found = dz.CGE(model, loss=lambda o, t: (o * t).sum(), step_size=3.0).estimate(X, Y)
    for value, expected in zip(found.gradients.values(), exact, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
