"""Random estimates: unbiased on linear functions, variance 1/q, and the bias that smoothing brings vanishes with the step.

For a linear function with gradient g the estimate from q directions has, per entry, the variance
``(|g|^2 + g_i^2) / q`` (gaussian), ``(|g|^2 - g_i^2) / q`` (rademacher), and ``(d |g|^2 + (d - 2) g_i^2) / ((d + 2) q)``
(sphere): from ``E u_i^2 u_j^2`` of each law.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import deepzero as dz

G = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
D = len(G)
SQUARE = float(G @ G)
VARIANCE = {
    "gaussian": SQUARE + G**2,
    "rademacher": SQUARE - G**2,
    "sphere": (D * SQUARE + (D - 2) * G**2) / (D + 2),
}


def linear(params: dict[str, np.ndarray]) -> float:
    return float(G @ params["w"])


def estimates(
    fn: object, queries: int, repeats: int, distribution: str, step_size: float = 1e-3, **options: object
) -> Tensor:
    box = dz.BlackBox(fn, {"w": np.zeros(D)})
    seeds = range(repeats)
    runs = [
        dz.RGE(box, queries=queries, distribution=distribution, step_size=step_size, seed=s, **options) for s in seeds
    ]
    return torch.stack([zo.estimate().gradients["w"] for zo in runs])


@pytest.mark.parametrize("distribution", sorted(VARIANCE))
def test_unbiased_on_linear_functions(distribution: str) -> None:
    """The mean of n estimates lies within five standard errors of the gradient."""
    sample = estimates(linear, 10, 200, distribution)
    deviation = (sample.mean(0) - torch.from_numpy(G)).abs()
    assert bool((deviation < 5 * torch.from_numpy(VARIANCE[distribution] / (10 * 200)).sqrt()).all())


@pytest.mark.parametrize("distribution", sorted(VARIANCE))
@pytest.mark.parametrize("queries", [1, 8])
def test_variance_falls_as_one_over_the_queries(distribution: str, queries: int) -> None:
    total = float(estimates(linear, queries, 400, distribution).var(0).sum())
    assert total * queries == pytest.approx(VARIANCE[distribution].sum(), rel=0.2)


def test_one_rademacher_direction_is_exact_in_one_dimension() -> None:
    box = dz.BlackBox(lambda p: float(3 * p["w"][0]), {"w": np.zeros(1)})
    found = dz.RGE(box, queries=1, distribution="rademacher", step_size=0.1).estimate()
    assert float(found.gradients["w"]) == pytest.approx(3, abs=1e-12)


def test_the_bias_vanishes_with_the_step() -> None:
    """On ``sum exp(w)`` forward estimates are biased upwards; the bias halves with the step (same directions)."""

    def curved(params: dict[str, np.ndarray]) -> float:
        return float(np.exp(params["w"]).sum())

    limit = estimates(curved, 50, 20, "gaussian", 1e-6)
    bias = [float((estimates(curved, 50, 20, "gaussian", step) - limit).norm()) for step in (2e-2, 1e-2)]
    assert bias[0] / bias[1] == pytest.approx(2, rel=0.05)
    central = [
        float((estimates(curved, 50, 20, "gaussian", step, stencil=dz.CENTRAL) - limit).norm()) for step in (0.2, 0.1)
    ]
    assert central[0] / central[1] == pytest.approx(4, rel=0.1)


def test_the_average_over_all_rademacher_directions_is_the_gradient() -> None:
    """``E[u u^T] = I``: many queries come close to the coordinate estimate, with the error ``|g| sqrt(d / q)``."""
    found = estimates(linear, 4000, 1, "rademacher")[0]
    assert float((found - torch.from_numpy(G)).norm()) < 3 * math.sqrt(SQUARE * D / 4000)
