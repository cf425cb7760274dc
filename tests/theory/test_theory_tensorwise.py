"""Tensor-wise estimates: without bias for any number of queries, and the noise of a tensor stays in it.

For a linear function with gradient g_j in tensor j of n the estimate from q directions, q a multiple of n, has the
variance ``n (|g_j|^2 + g_i^2) / q`` at entry i of tensor j: q / n directions of the tensor's own.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.probes import TensorwiseProbes

G = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([10.0, 0.0]), "c": np.array([0.1])}
N = len(G)


def linear(params: dict[str, np.ndarray]) -> float:
    return sum(float(G[name] @ params[name]) for name in G)


def estimates(queries: int, repeats: int) -> dict[str, Tensor]:
    box = dz.BlackBox(linear, {name: np.zeros(len(g)) for name, g in G.items()})
    made = [
        dz.Estimator(box, probes=TensorwiseProbes(queries, seed=seed), evaluator=dz.SequentialEvaluator()).estimate()
        for seed in range(repeats)
    ]
    return {name: torch.stack([one.gradients[name] for one in made]) for name in G}


def variance(name: str, queries: int) -> Tensor:
    g = torch.from_numpy(G[name])
    return N * (g.square().sum() + g.square()) / queries


def test_variance_by_tensor() -> None:
    for name, sample in estimates(2 * N, 600).items():
        assert float(sample.var(0).sum()) == pytest.approx(float(variance(name, 2 * N).sum()), rel=0.2)


@pytest.mark.parametrize("queries", [1, N, N + 1])
def test_unbiased_for_any_number_of_queries(queries: int) -> None:
    """The mean of n estimates lies within five of its standard errors of the gradient."""
    for name, sample in estimates(queries, 600).items():
        deviation = (sample.mean(0) - torch.from_numpy(G[name])).abs()
        assert bool((deviation <= 5 * sample.std(0) / 600**0.5).all())


def test_a_direction_moves_one_tensor_and_all_have_their_turn() -> None:
    box = dz.BlackBox(linear, {name: np.zeros(len(g)) for name, g in G.items()})
    context = StepContext(3, 0, box, (), {})
    drawn, again = (TensorwiseProbes(2 * N, seed=1).draw(context) for _ in range(2))
    stacked = drawn.stack(0, 2 * N)
    for k in range(2 * N):
        moving = [name for name in G if bool(stacked[name][k].any())]
        assert moving == [drawn.tensor(k)]
        assert torch.equal(again.stack(k, k + 1)[moving[0]][0], stacked[moving[0]][k])
    assert sorted(drawn.tensor(k) for k in range(N)) == sorted(G)
