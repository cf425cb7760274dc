"""How rules are tested: on every kind of difference, against one full forward a query, at a step where nothing is linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from oracle import assert_agrees, initialize, normal, ramp_loss, some_coordinates
from torch import Tensor, nn

T = TypeVar("T")
Op = Callable[[Tensor], Tensor]
SHAPE = (2, 4, 6, 5)


class EveryKind(nn.Module):
    """Each operation on a parameter (one-hot differences), behind one layer (channel) and behind two (dense)."""

    def __init__(self, ops: dict[str, Op], scale: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(SHAPE))
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.ModuleDict({name: op for name, op in ops.items() if isinstance(op, nn.Module)})
        self.ops = list(ops.values())
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        kinds = (self.scale * self.table, self.scale * one, self.scale * self.second(one))
        return torch.cat([op(z).to(torch.float64).reshape(-1) for op in self.ops for z in kinds])


def check(ops: dict[str, Op], scale: float = 1.0) -> None:
    model = initialize(EveryKind(ops, scale))
    with torch.no_grad():
        model.table.copy_(normal(*SHAPE, seed=9))
    assert_agrees(model, ramp_loss, normal(2, 2, 6, 5, seed=3), sparsity=some_coordinates(model, most=24))


def check_each(ops: dict[str, Op], scale: float = 1.0) -> None:
    """All at once, because exporting is what takes the time; one by one if that fails, to say which of them is wrong."""
    try:
        check(ops, scale)
    except Exception as together:
        wrong = {}
        for name, op in ops.items():
            try:
                check({name: op}, scale)
            except Exception as error:
                wrong[name] = f"{type(error).__name__}: {str(error)[:300]}"
        lines = [f"{name}: {message}" for name, message in wrong.items()] or ["only together"]
        raise AssertionError("\n".join(lines)) from together


def groups(table: dict[str, T], size: int = 14) -> list[pytest.param]:
    """The table cut into groups, each named after its first entry."""
    names = list(table)
    cuts = [names[start : start + size] for start in range(0, len(names), size)]
    return [pytest.param({name: table[name] for name in cut}, id=f"{cut[0]}...{cut[-1]}") for cut in cuts]
