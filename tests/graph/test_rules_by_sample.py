"""Differences of some samples: each operation gives what it gives for all samples, and works on those that differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_agrees, initialize, normal, seeded
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deepzero as dz
from deepzero.graph.calls import Call, Operand, Value
from deepzero.graph.capture import Node
from deepzero.graph.differences import Channel, Dense, SomeSamples
from deepzero.graph.propagate import loss_differences
from deepzero.graph.rules import RULES
from deepzero.graph.rules.by_sample import APART, by_sample
from deepzero.objective import NetworkObjective

aten = torch.ops.aten
SHAPE = (4, 6, 8)
OWNERS = torch.tensor([0, 0, 2])
SAMPLES = torch.tensor([1, 3, 0])
Arguments = Callable[[Any], tuple[Any, ...]]
MASK = torch.ones(6, 6, dtype=torch.bool).tril()
CASES: dict[str, tuple[Any, Arguments]] = {
    **{
        str(target): (target, lambda x: (x,))
        for target in (
            aten.gelu.default, aten.relu.default, aten.silu.default, aten.tanh.default, aten.sigmoid.default,
            aten.clone.default, aten.contiguous.default, aten.neg.default,
        )
    },
    "add": (aten.add.Tensor, lambda x: (x, normal(6, 8, seed=2))),
    "add to itself": (aten.add.Tensor, lambda x: (x, x)),
    "sub": (aten.sub.Tensor, lambda x: (normal(*SHAPE, seed=2), x)),
    "mul": (aten.mul.Tensor, lambda x: (x, normal(*SHAPE, seed=2))),
    "mul with itself": (aten.mul.Tensor, lambda x: (x, x)),
    "div": (aten.div.Tensor, lambda x: (x, normal(*SHAPE, seed=2).exp())),
    "linear": (aten.linear.default, lambda x: (x, normal(5, 8, seed=2), normal(5, seed=3))),
    "layer norm": (aten.layer_norm.default, lambda x: (x, [8], normal(8, seed=2), normal(8, seed=3))),
    "layer norm of two dimensions": (aten.layer_norm.default, lambda x: (x, [6, 8])),
    "rms norm": (aten.rms_norm.default, lambda x: (x, [8], normal(8, seed=2))),
    "view": (aten.view.default, lambda x: (x, [4, 6, 2, 4])),
    "reshape": (aten.reshape.default, lambda x: (x, [4, 48])),
    "unsafe view": (aten._unsafe_view.default, lambda x: (x, [4, 3, 2, 8])),
    "flatten": (aten.flatten.using_ints, lambda x: (x, 1, 2)),
    "unflatten": (aten.unflatten.int, lambda x: (x, 2, [2, 4])),
    "transpose": (aten.transpose.int, lambda x: (x, 1, -1)),
    "permute": (aten.permute.default, lambda x: (x, [0, 2, 1])),
    "split": (aten.split.Tensor, lambda x: (x, 4, 2)),
    "split with sizes": (aten.split_with_sizes.default, lambda x: (x, [2, 6], -1)),
    "chunk": (aten.chunk.default, lambda x: (x, 2, -1)),
    "slice": (aten.slice.Tensor, lambda x: (x, 1, 2, 5)),
    "attention": (aten.scaled_dot_product_attention.default, lambda x: (x, x, normal(4, 6, 3, seed=2), None, 0.0, True)),
    "attention to a value": (
        aten.scaled_dot_product_attention.default, lambda x: (normal(4, 5, 8, seed=2), normal(4, 6, 8, seed=3), x)),
    "attention with a mask": (aten.scaled_dot_product_attention.default, lambda x: (x, x, x, MASK)),
}  # fmt: skip
MIXED: dict[str, tuple[Any, Arguments]] = {
    "to other samples": (aten.add.Tensor, lambda x: (x, normal(2, *SHAPE, seed=2))),
    "samples and positions": (aten.view.default, lambda x: (x, [24, 8])),
    "flattened": (aten.flatten.using_ints, lambda x: (x, 0, 1)),
    "samples behind positions": (aten.transpose.int, lambda x: (x, 0, 1)),
    "samples last": (aten.permute.default, lambda x: (x, [1, 0, 2])),
    "samples split": (aten.split.Tensor, lambda x: (x, 2)),
    "some samples": (aten.slice.Tensor, lambda x: (x, 0, 1, 3)),
    "normalized": (aten.layer_norm.default, lambda x: (x, [4, 6, 8])),
    "samples as heads": (
        aten.scaled_dot_product_attention.default, lambda x: (normal(2, 4, 6, 8, seed=2), x, normal(4, 6, 8, seed=3))),
    "summed": (aten.sum.dim_IntList, lambda x: (x, [0])),
    "softmax": (aten.softmax.int, lambda x: (x, 0)),
}  # fmt: skip


def drawn(dtype: torch.dtype) -> SomeSamples:
    delta = 0.3 * normal(3, *SHAPE[1:], seed=7, dtype=dtype)
    return SomeSamples(OWNERS, Channel(0, SAMPLES, delta, torch.Size(SHAPE)), 4)


def outcomes(target: Any, arguments: Arguments, dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    """By samples, and for the dense difference in float64."""
    difference, base = drawn(dtype), normal(*SHAPE, seed=1)
    found = []
    for kind, own in ((difference, dtype), (Dense(difference.dense().double()), torch.float64)):
        x = Operand(Value(base.to(own)), kind)  # type: ignore[arg-type]
        args = tuple(Operand(Value(cast(a, own)), None) if isinstance(a, Tensor) else a for a in arguments(x))
        plain = [a.base if isinstance(a, Operand) else a for a in args]
        call = Call(Node("tested", target, (), {}), (Value(target(*plain)),), by_sample=True)
        rule = RULES[target]
        out = by_sample(rule, call, args, {}) if isinstance(kind, SomeSamples) else rule(call, *args)
        found.append(list(out) if isinstance(out, tuple) else [out])
    return found[0], found[1]


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*CASES, *MIXED])
def test_as_for_all_samples(name: str, dtype: torch.dtype) -> None:
    found, expected = outcomes(*{**CASES, **MIXED}[name], dtype)
    for part, whole in zip(found, expected, strict=True):
        assert isinstance(part, SomeSamples) == (name in CASES)
        close = torch.finfo(dtype).eps * 100
        torch.testing.assert_close(part.dense().double(), whole.dense(), rtol=close, atol=close)


def test_every_operation_has_a_case() -> None:
    assert {target for target, _ in CASES.values()} == set(APART)


def test_other_samples_are_written_out() -> None:
    """Two operands that differ in different samples, or one of which differs everywhere."""
    first, base = drawn(torch.float64), Value(normal(*SHAPE, seed=1))
    moved = SomeSamples(OWNERS, Channel(0, SAMPLES.flip(0), first.channel.delta, first.shape), 4)
    call = Call(Node("tested", aten.add.Tensor, (), {}), (base,))
    for other in (moved, Dense(normal(4, *SHAPE, seed=5))):
        operands = [Operand(base, d) for d in (first, other)]  # type: ignore[arg-type]
        out = by_sample(RULES[aten.add.Tensor], call, operands, {})
        torch.testing.assert_close(out.dense(), first.dense() + other.dense())


class Reader(nn.Module):
    """Embeddings, attention and a perceptron, and perhaps a batch norm, which mixes samples."""

    def __init__(self, *, mixes: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.norm, self.qkv, self.mlp = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mixer = nn.BatchNorm1d(6) if mixes else nn.Identity()
        self.head = nn.Linear(8, 20)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.mixer(self.table(x) + self.place(torch.arange(6)))
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(self.norm(h)).chunk(3, -1))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        out: Tensor = self.head(h + F.gelu(self.mlp(h))).flatten(0, 1)
        return out


TOKENS = torch.randint(1, 20, (9, 6), generator=seeded(2))  # token 0 is in no sample
TOKENS[:, 0] = 7  # token 7 is in all of them
LABELS = torch.randint(0, 20, (54,), generator=seeded(3))


@pytest.mark.parametrize("options", [{}, {"mixes": True}, {"tied": True}])
def test_a_network(options: dict[str, bool]) -> None:
    model = initialize(Reader(**options), dtype=torch.float64)
    assert_agrees(model, F.cross_entropy, TOKENS, LABELS)


def test_only_the_samples_that_look_a_row_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = initialize(Reader(), dtype=torch.float64)
    evaluator, objective = dz.PropagationEvaluator(verify=False), NetworkObjective(model, F.cross_entropy)
    program = evaluator.program(objective, (TOKENS, LABELS))
    values = evaluator.base_values(program, objective, (TOKENS, LABELS), 0)
    seen: dict[str, int] = {}

    def watched(rule: Any, call: Call, args: Any, kwargs: Any) -> Any:
        out = by_sample(rule, call, args, kwargs)
        leaves = pytree.tree_leaves(out, is_leaf=lambda a: isinstance(a, SomeSamples))
        seen.update({str(call.node.target): part.channel.count for part in leaves if isinstance(part, SomeSamples)})
        return out

    monkeypatch.setattr("deepzero.graph.propagate.samples_apart", watched)

    def counted(token: int) -> tuple[dict[str, int], Tensor]:
        seen.clear()
        found = loss_differences(
            program.cones["table.weight"], values, program.graph.output, torch.tensor([8 * token]), 0.1
        )
        return dict(seen), found

    token = next(t for t in range(1, 20) if 0 < int((t == TOKENS).any(1).sum()) <= 4)
    number = int((token == TOKENS).any(1).sum())
    counts, found = counted(token)
    assert counts["aten.linear.default"] == counts["aten.scaled_dot_product_attention.default"] == number
    assert float(found) != 0
    assert counted(0) == ({}, torch.zeros(1, dtype=torch.float64))
    assert counted(7)[0] == {}, "all samples differ: as one dense difference"
