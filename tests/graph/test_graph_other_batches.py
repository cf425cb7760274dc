"""A program for another large number of samples has the rules of the first: they are not checked again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.evaluators import propagation


class Network(nn.Module):
    """A network whose program writes the batch size out, and can be told to change with it."""

    def __init__(self, *, changes: bool) -> None:
        super().__init__()
        self.first, self.second, self.changes = nn.Linear(4, 6), nn.Linear(3, 3), changes

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x).view(2 * len(x), 3)
        z = torch.tanh(z) if self.changes and len(x) < 64 else torch.relu(z)
        return self.second(z).view(len(x), 2, 3).sum(1)


@pytest.mark.parametrize(
    ("changes", "sizes", "checks"),
    [(False, (80, 50), 1), (True, (80, 50), 2), (False, (80, 5), 2), (False, (5, 80), 2), (False, (8, 5), 2)],
)
def test_rules_are_checked_once_for_all_large_batches(
    changes: bool, sizes: tuple[int, int], checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels may be others for few samples, so a check with many says nothing of them, nor the other way round."""
    calls: list[Any] = []
    verify = propagation.verify
    monkeypatch.setattr(propagation, "verify", lambda *a, **k: (calls.append(a), verify(*a, **k))[1])
    model = initialize(Network(changes=changes))
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
    for count in sizes:
        x, y = normal(count, 4), torch.arange(count) % 3
        oracle = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.SequentialEvaluator())
        assert_close(zo.estimate(x, y).gradients, oracle.estimate(x, y).gradients)
    assert len(calls) == checks
    assert zo.evaluator.check(zo.objective, (x, y)) is not None


@pytest.mark.parametrize(
    ("share", "most", "count"), [(0.5, 1.0, 50), (0.01, 1.0, 32), (0.01, 0.1, 10), (0.0, 0.0, 2), (1.0, 1.0, 100)]
)
def test_the_samples_of_a_check(share: float, most: float, count: int) -> None:
    """As many as take the kernels of the whole batch, where the memory budget has room for them."""
    sample = propagation.first_samples((normal(100, 2), torch.arange(100)), share, most)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(tuple(sample)) if isinstance(leaf, Tensor)]
    assert [len(leaf) for leaf in leaves] == [count, count]
