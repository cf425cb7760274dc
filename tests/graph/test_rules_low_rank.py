"""Differences of low rank and segments: each rule that takes them gives what it gives for the dense difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, seeded
from rule_cases import apply
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph.cpu import row_blocks
from deepzero.graph.cpu.row_blocks import RowsOfSums
from deepzero.graph.differences import BaseRows, Channel, Dense, Difference, LowRank, RankOne, Segment
from deepzero.graph.propagate import loss_differences
from deepzero.objective import NetworkObjective

aten = torch.ops.aten
COUNT, LEAD, SIZE = 5, (3, 4), 8
SHAPE = torch.Size((*LEAD, SIZE))
CHANNELS = {"one": torch.zeros(COUNT, dtype=torch.int64), "several": torch.tensor([0, 0, 3, 3, 1])}


def draw(*shape: int, seed: int, dtype: torch.dtype, scale: float) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype) * scale


def drawn(kind: str, dtype: torch.dtype, scale: float) -> Difference:
    """A difference of a kind, of a value of ``SHAPE``."""

    def of(*shape: int, seed: int) -> Tensor:
        return draw(*shape, seed=seed, dtype=dtype, scale=scale)

    if kind.startswith("segment"):
        return Segment(CHANNELS[kind.split()[1]], of(COUNT, *LEAD, 2, seed=1), SHAPE)
    if kind == "channel":
        return Channel(2, CHANNELS["several"], of(COUNT, *LEAD, seed=1), SHAPE)
    if kind == "rank one":
        return RankOne(of(COUNT, *LEAD, seed=1), of(4, 1, SIZE, seed=2), CHANNELS["several"], SHAPE)
    many = 1 if "shared" in kind else COUNT
    k = 3 if "three" in kind else 1
    rows = BaseRows(of(*SHAPE, seed=3)) if "rows" in kind else None
    multiples = None if rows is None else of(COUNT, *LEAD, seed=4)
    return LowRank(of(COUNT, *LEAD, k, seed=1), of(many, k, SIZE, seed=2), SHAPE, multiples, rows)


LOW_RANK = (
    "one vector",
    "three vectors",
    "three shared vectors",
    "one vector and rows",
    "three shared vectors and rows",
)
SEGMENTS = ("segment one", "segment several")
W, B = normal(8, 6, seed=5), normal(6, seed=6)
OPERATIONS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "linear": lambda x: (aten.linear.default, x, W.t(), B),
    "matmul": lambda x: (aten.matmul.default, x, W),
    "layer_norm": lambda x: (aten.layer_norm.default, x, [8], normal(8, seed=7), normal(8, seed=8)),
    "layer_norm without affine part": lambda x: (aten.layer_norm.default, x, [8]),
    "rms_norm": lambda x: (aten.rms_norm.default, x, [8], normal(8, seed=7)),
    "view": lambda x: (aten.view.default, x, [12, 8]),
    "view of other rows": lambda x: (aten.view.default, x, [3, 8, 4]),
    "neg": lambda x: (aten.neg.default, x),
    "times a number": lambda x: (aten.mul.Tensor, x, 0.3),
    "clone": lambda x: (aten.clone.default, x),
    "plus what does not differ": lambda x: (aten.add.Tensor, x, normal(*SHAPE, seed=9)),
    "minus": lambda x: (aten.sub.Tensor, normal(*SHAPE, seed=9), x),
    "plus a larger value": lambda x: (aten.add.Tensor, x, normal(2, *SHAPE, seed=9)),
}  # fmt: skip


def cast(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments)


def change(operation: str, base: Tensor, difference: Difference) -> Difference:
    target, *arguments = OPERATIONS[operation]((base, difference))
    outcome = apply(target, *cast(tuple(arguments), base.dtype))
    assert outcome is not None
    assert not isinstance(outcome, tuple)
    return outcome


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [*LOW_RANK, *SEGMENTS, "channel", "rank one"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_as_for_the_dense_difference(operation: str, kind: str, dtype: torch.dtype) -> None:
    for scale in (1e-4, 1.0, 30.0):
        base, difference = draw(*SHAPE, seed=11, dtype=dtype, scale=2.0), drawn(kind, dtype, scale)
        found = change(operation, base, difference).dense()
        expected = change(operation, base.double(), Dense(difference.dense().double())).dense()
        rounding = torch.finfo(dtype).eps * 200
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding * expected.abs().max().item())


@pytest.mark.parametrize("kind", ["channel", "rank one", *LOW_RANK[:3]])
@pytest.mark.parametrize("operation", ["layer_norm", "layer_norm without affine part", "rms_norm"])
def test_normalization_keeps_the_rank_low(operation: str, kind: str) -> None:
    base = normal(*SHAPE, seed=11)
    out = change(operation, base, drawn(kind, torch.float64, 0.1))
    assert isinstance(out, LowRank)
    assert out.rows is not None
    assert isinstance(change("linear", base, out), LowRank)


def test_base_rows_meet_a_matrix_once() -> None:
    rows, matrix = BaseRows(normal(3, 4)), normal(4, 2)
    assert rows.times(matrix) is rows.times(matrix)
    assert rows.times(matrix) is not rows.times(matrix.clone())
    assert rows.reshaped(torch.Size((3, 1, 4))) is rows.reshaped(torch.Size((3, 1, 4)))
    torch.testing.assert_close(rows.times(matrix).base, rows.base @ matrix)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_segment(value: float) -> None:
    difference = drawn("segment several", torch.float64, 1.0)
    assert isinstance(difference, Segment)
    difference.delta[2, 1, 1, 0] = value
    dense = difference.dense()
    assert int((~dense.isfinite()).sum()) == 1
    assert not math.isfinite(float(dense[2, 1, 1, 6]))


def test_heads_that_are_joined_are_a_segment() -> None:
    apart = torch.Size((2, 3, 4, 5))
    for channels in CHANNELS.values():
        difference = Channel(2, channels, normal(COUNT, 2, 3, 5), apart)
        joined = apply(aten.view.default, (normal(*apart), difference), [2, 3, 20])
        assert isinstance(joined, Segment)
        torch.testing.assert_close(joined.dense(), difference.dense().reshape(COUNT, 2, 3, 20), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("segments", CHANNELS.values())
def test_a_segment_meets_its_rows_of_a_matrix(segments: Tensor, rows: int) -> None:
    """As a difference of low rank where there are enough rows, or right away."""
    difference = Segment(segments, normal(COUNT, rows, 3), torch.Size((rows, 12)))
    weight = normal(9, 12, seed=2)
    found = apply(aten.linear.default, (normal(rows, 12), difference), weight)
    assert isinstance(found, LowRank if rows == 40 else Dense)
    torch.testing.assert_close(found.dense(), F.linear(difference.dense(), weight))


class Decoder(nn.Module):
    """A transformer block, a norm and a head."""

    def __init__(self, heads: int = 4, size: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        self.qkv, self.output = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down, self.head = nn.Linear(size, 2 * size), nn.Linear(2 * size, size), nn.Linear(size, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        out: Tensor = self.head(self.norms[2](x)).flatten(0, 1)
        return out


EXPECTED = {
    "qkv.weight": ("output", "layer_norm", "up"),
    "output.weight": ("layer_norm", "up"),
    "up.weight": ("layer_norm", "head"),
    "down.weight": ("layer_norm", "head"),
}
"""Parameter -> the operations behind it whose outcome is of low rank."""


@pytest.mark.parametrize("parameter", EXPECTED)
def test_what_is_of_low_rank_in_a_transformer_block(parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = initialize(Decoder(), dtype=torch.float64)
    x, y = normal(6, 10, 16, dtype=torch.float64), torch.randint(0, 5, (60,), generator=seeded(1))
    evaluator, objective = dz.PropagationEvaluator(verify=False), NetworkObjective(model, F.cross_entropy)
    program = evaluator.program(objective, (x, y))
    values = evaluator.base_values(program, objective, (x, y), 0)
    seen: list[int] = []
    plain, by_blocks = LowRank.dense, RowsOfSums.of

    def counted(difference: LowRank) -> Tensor:
        seen.append(difference.shape[-1])
        return plain(difference)

    def counted_in_blocks(difference: LowRank) -> RowsOfSums:
        seen.append(difference.shape[-1])
        return by_blocks(difference)

    monkeypatch.setattr(LowRank, "dense", counted)
    monkeypatch.setattr(RowsOfSums, "of", counted_in_blocks)
    indices = torch.tensor([0, 5, 37])
    found = loss_differences(program.cones[parameter], values, program.graph.output, indices, 0.1)
    widths = {"output": 16, "layer_norm": 16, "up": 32, "head": 5}
    assert seen[0] == widths[EXPECTED[parameter][-1]], "dense too early"
    weight = model.get_parameter(parameter)
    expected = torch.stack([moved_loss(model, weight, int(i), x, y) for i in indices])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def moved_loss(model: nn.Module, weight: Tensor, index: int, x: Tensor, y: Tensor) -> Tensor:
    base = F.cross_entropy(model(x), y)
    kept = weight.view(-1)[index].clone()
    weight.view(-1)[index] += 0.1
    moved = F.cross_entropy(model(x), y)
    weight.view(-1)[index] = kept
    return moved - base


@pytest.mark.parametrize("block", [1, 200, 1 << 20], ids=["one", "some", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", LOW_RANK)
@pytest.mark.parametrize("size", [1e-4, 0.3, 30.0])
def test_cross_entropy_writes_blocks(
    monkeypatch: pytest.MonkeyPatch, size: float, kind: str, dtype: torch.dtype, block: int
) -> None:
    """Of weighted classes, and of labels that are ignored: as of what is written out in float64."""
    monkeypatch.setattr(row_blocks, "BLOCK", block)
    difference = drawn(kind, dtype, size)
    assert isinstance(difference, LowRank)
    flat = torch.Size((math.prod(LEAD), SIZE))
    multiples = None if difference.multiples is None else difference.multiples.flatten(1)
    rows = None if difference.rows is None else difference.rows.reshaped(flat)
    rowwise = LowRank(difference.factors.flatten(1, 2), difference.vectors, flat, multiples, rows)
    logits, labels = 2 * normal(*flat, seed=11, dtype=dtype), torch.arange(len(difference.factors[0].flatten(0, 1))) % 8
    labels[3] = -100
    weights, loss = normal(SIZE, seed=7, dtype=dtype).abs(), aten.cross_entropy_loss.default
    for reduction in range(3):
        found = apply(loss, (logits, rowwise), labels, weights, reduction)
        exact = apply(loss, (logits.double(), Dense(rowwise.dense().double())), labels, weights.double(), reduction)
        assert isinstance(found, Dense)
        assert isinstance(exact, Dense)
        rounding = 1e-10 if dtype == torch.float64 else 3e-4
        largest = float(exact.delta.abs().max())
        torch.testing.assert_close(found.delta.double(), exact.delta.double(), rtol=rounding, atol=rounding * largest)


def test_all_kinds_are_added_up() -> None:
    kinds = [drawn(kind, torch.float64, 1.0) for kind in (*LOW_RANK, *SEGMENTS, "channel", "rank one")]
    base = normal(*SHAPE, seed=3)
    for first, second in itertools.product(kinds, kinds):
        out = apply(aten.add.Tensor, (base, first), (base, second))
        assert out is not None
        assert not isinstance(out, tuple)
        torch.testing.assert_close(out.dense(), first.dense() + second.dense())
