"""The law of random gradient estimation at small steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import deepzero as dz
from deepzero import baselines
from deepzero.objective import NetworkObjective

QUERIES, DRAWS = 6, 1600


def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model, torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])


def flat(model: torch.nn.Module) -> torch.Tensor:
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    model.zero_grad()
    return gradient


def exact() -> torch.Tensor:
    model, x, y = problem()
    F.cross_entropy(model(x), y).backward()
    return flat(model)


def sample(make: Callable[..., Any]) -> torch.Tensor:
    model, x, y = problem()
    source = make(model)
    draws = []
    for _ in range(DRAWS):
        source.backward(x, y)
        draws.append(flat(model))
    return torch.stack(draws)


def test_mean_and_covariance_are_those_of_the_law() -> None:
    gradient = exact()
    draws = sample(lambda model: baselines.build("rge-limit", model, loss=F.cross_entropy, queries=QUERIES))
    square = gradient.square().sum()
    covariance = (square * torch.eye(len(gradient)).double() + torch.outer(gradient, gradient)) / QUERIES
    deviation = (square / QUERIES / DRAWS).sqrt()
    assert torch.allclose(draws.mean(0), gradient, atol=float(6 * deviation), rtol=0)
    assert torch.allclose(draws.T.cov(), covariance, atol=float(0.1 * square / QUERIES), rtol=0.1)
    mean_error = (draws - gradient).square().sum(1).mean() / square
    assert torch.isclose(mean_error, torch.tensor((len(gradient) + 1) / QUERIES).double(), rtol=0.05)


def test_real_random_estimates_at_a_small_step_have_the_same_moments() -> None:
    gradient = exact()
    real = sample(
        lambda model: dz.RGE(
            model, loss=F.cross_entropy, queries=QUERIES, step_size=1e-6, evaluator=dz.BatchedEvaluator(chunk=QUERIES)
        )
    )
    drawn = sample(lambda model: baselines.build("rge-limit", model, loss=F.cross_entropy, queries=QUERIES, seed=1))
    scale = float(gradient.square().sum() / QUERIES)
    assert torch.allclose(real.mean(0), drawn.mean(0), atol=8 * (scale / DRAWS) ** 0.5, rtol=0)
    assert torch.allclose(real.T.cov(), drawn.T.cov(), atol=0.15 * scale, rtol=0.15)
    for power in (1.5, 2.0):  # beyond the second moment
        of = [(draws - gradient).norm(dim=1).pow(2 * power).mean() for draws in (real, drawn)]
        assert torch.isclose(of[0], of[1], rtol=0.15)


def test_many_queries_give_the_gradient() -> None:
    model, x, y = problem()
    source = baselines.build("rge-limit", model, loss=F.cross_entropy, queries=10**7)
    loss = source.backward(x, y)
    assert torch.allclose(flat(model), exact(), atol=3e-3)
    assert torch.equal(loss, NetworkObjective(model, F.cross_entropy).loss_value(model(x), y).detach())
    assert source.queries == 10**7 + 1


def test_a_gradient_of_zero_stays_zero() -> None:
    model = torch.nn.Linear(2, 1)
    source = baselines.build("rge-limit", model, loss=lambda z, y: (0 * z).sum())
    source.backward(torch.ones(3, 2), torch.zeros(3, 1))
    assert not flat(model).any()
