"""A program for another number of samples has the rules of the first: they are not checked again."""

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
        z = torch.tanh(z) if self.changes and len(x) < 8 else torch.relu(z)
        return self.second(z).view(len(x), 2, 3).sum(1)


@pytest.mark.parametrize(("changes", "checks"), [(False, 1), (True, 2)])
def test_rules_are_checked_once_for_all_batch_sizes(
    changes: bool, checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    verify = propagation.verify
    monkeypatch.setattr(propagation, "verify", lambda *a, **k: (calls.append(a), verify(*a, **k))[1])
    model = initialize(Network(changes=changes))
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator())
    for count in (8, 5):
        x, y = normal(count, 4), torch.arange(count) % 3
        oracle = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.SequentialEvaluator())
        assert_close(zo.estimate(x, y).gradients, oracle.estimate(x, y).gradients)
    assert len(calls) == checks
    assert zo.evaluator.check(zo.objective, (x, y)) is not None
