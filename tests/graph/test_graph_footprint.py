"""The footprint of a step: what is counted, and that walking common ways once changes none of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import footprint as module
from deepzero.graph.footprint import LiveBytes, Survey, footprint
from deepzero.graph.propagate import advance

MEBI = 1 << 20


def test_live_bytes_counts_what_is_made_and_still_there() -> None:
    before = torch.ones(MEBI // 4)
    with LiveBytes() as meter:
        first = before * 2
        second = first.view(2, -1)  # no memory of its own
        assert meter.live == MEBI
        del first
        assert meter.live == MEBI
        third = before.reshape(4, -1)  # a view of what was there before
        total = (second + 1).sum()
        assert meter.live == MEBI + 4
        del second
        assert meter.live == total.nbytes
        assert third.shape == (4, MEBI // 16)
    assert meter.peak == 2 * MEBI + 4


def test_a_convolution_takes_copies_inside() -> None:
    x, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    out = F.conv2d(x, weight)
    assert module.scratch(torch.ops.aten.convolution.default, [x, weight], [out]) == x.nbytes + out.nbytes
    assert module.scratch(torch.ops.aten.convolution.default, [x.double(), weight.double()], [out]) == 9 * 2 * x.nbytes
    assert module.scratch(torch.ops.aten.relu.default, [x], [x]) == 0


class Residual(nn.Module):
    """A block with two ways from its input to its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def convolutional(depth: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    blocks = [Residual(4) for _ in range(depth)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return initialize(model).float(), (normal(5, 1, 8, 8).float(), torch.arange(5) % 3)


def attentive(depth: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True) for _ in range(depth)]
    model = nn.Sequential(nn.Embedding(11, 8), *layers, nn.Flatten(), nn.Linear(32, 3))
    return initialize(model).float(), (torch.arange(20).view(5, 4) % 11, torch.arange(5) % 3)


def values_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False))
    program = zo.evaluator.program(zo.objective, batch)
    return program, zo.evaluator.base_values(program, zo.objective, batch, 0)


@pytest.mark.parametrize("network", [convolutional, attentive])
def test_common_ways_are_walked_once_and_count_the_same(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, values = values_of(*network(3))
    found = footprint(program, values, 1e-3)
    monkeypatch.setattr(module, "_place", lambda *_: None)  # every parameter by itself
    alone = footprint(program, values, 1e-3)
    assert found == alone
    assert len(set(found.queries.values())) > 3


@pytest.mark.parametrize("network", [convolutional, attentive])
def test_the_work_grows_with_the_depth_and_not_with_its_square(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    walked: list[Any] = []

    def counted(*arguments: Any, **options: Any) -> None:
        walked.append(arguments)
        advance(*arguments, **options)

    monkeypatch.setattr(module, "advance", counted)
    for depth in (4, 8):
        program, values = values_of(*network(depth))
        walked.clear()
        survey = Survey(values, 1e-3)
        with torch.no_grad():
            for cone in program.cones.values():
                survey.along(cone)
        counts.append(len(walked))
    assert counts[1] < 2.2 * counts[0]


def test_a_rule_with_more_temporaries_takes_more() -> None:
    """Of two networks that differ in an activation alone, the one whose rule holds more tensors at a time."""
    feet = []
    for activation in (nn.ReLU(), nn.Hardswish()):
        model = initialize(nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), activation, nn.Linear(64, 3))).float()
        program, values = values_of(model, (normal(64, 4).float(), torch.arange(64) % 3))
        feet.append(footprint(program, values, 1e-3).queries["0.weight"])
    assert feet[0] < feet[1]


def test_rows_that_a_batch_looks_up_are_probed() -> None:
    model = initialize(nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(16, 3))).float()
    program, values = values_of(model, (torch.full((6, 2), 17), torch.arange(6) % 3))
    foot = footprint(program, values, 1e-3)
    assert foot.queries["0.weight"] > 6 * 2 * 4
