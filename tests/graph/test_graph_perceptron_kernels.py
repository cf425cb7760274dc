"""Perceptrons by blocks: what the plain rules of their parts give, for every kind of difference and size of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, estimate, initialize, normal, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import kernels
from deepzero.graph.calls import Value
from deepzero.graph.cpu import cpu_kernels, perceptron_kernels, row_blocks
from deepzero.graph.differences import BaseRows, Channel, Dense, Difference, LowRank
from deepzero.graph.rules import formulas

COUNT, LEAD, INPUTS, HIDDEN, OUTPUTS = 7, (5, 3), 4, 6, 3
SLOPE = 0.2
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": formulas.relu,
    "leaky_relu": lambda z, d: formulas.leaky_relu(z, d, SLOPE),
    "gelu": formulas.gelu,
    "silu": formulas.silu,
}
SHAPE = torch.Size((*LEAD, HIDDEN))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SIZES = (1, 100, 800, 1 << 20)
BLOCKS = pytest.mark.parametrize("block", SIZES, ids=["row", "rows", "some", "all"])


def drawn(kind: str, dtype: torch.dtype, scale: float) -> Channel | Dense | LowRank:
    """A difference of hidden values, or of the inputs of a linear layer in front of them."""

    def of(*shape: int, seed: int) -> Tensor:
        return normal(*shape, seed=seed, dtype=dtype) * scale

    if kind == "dense":
        return Dense(of(COUNT, *LEAD, INPUTS, seed=1))
    if kind == "samples":
        samples = torch.tensor([0, 0, 3, 4, 1, 2, 2])
        return Channel(0, samples, of(COUNT, LEAD[1], INPUTS, seed=1), torch.Size((*LEAD, INPUTS)))
    k, many = 2 if "two" in kind else 1, 1 if "shared" in kind else COUNT
    rows = BaseRows(normal(*SHAPE, seed=3, dtype=dtype)) if "rows" in kind else None
    multiples = None if rows is None else of(COUNT, *LEAD, seed=4)
    vectors = normal(many, k, HIDDEN, seed=2, dtype=dtype)
    return LowRank(of(COUNT, *LEAD, k, seed=1), vectors, SHAPE, multiples, rows)


KINDS = ("dense", "samples", "one vector", "one vector and rows", "two vectors", "two shared vectors and rows")


def exact(name: str, z: Tensor, difference: Difference, inner: Tensor | None, outer: Tensor) -> Tensor:
    d = difference.dense().double()
    d = d if inner is None else d @ inner.double().t()
    return FUNCTIONS[name](z.double(), d) @ outer.double().t()


@DTYPES
@BLOCKS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_what_the_parts_give(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, block: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(row_blocks, "BLOCK", block)
    z, outer = normal(*SHAPE, seed=5, dtype=dtype), normal(OUTPUTS, HIDDEN, seed=6, dtype=dtype)
    for scale in (1e-5, 0.3, 5.0):
        difference = drawn(kind, dtype, scale)
        inner = None if isinstance(difference, LowRank) else normal(HIDDEN, INPUTS, seed=7, dtype=dtype)
        found = kernels.on(z).perceptron(name, SLOPE, Value(z), difference, inner, outer)
        assert isinstance(found, Channel if kind == "samples" else Dense)
        expected = exact(name, z, difference, inner, outer)
        rounding = 1e-5 if dtype == torch.float32 else 1e-9
        largest = float(expected.abs().max())
        torch.testing.assert_close(found.dense().double(), expected, rtol=rounding, atol=rounding * largest)


@DTYPES
def test_hidden_differences_that_are_there_already(dtype: torch.dtype) -> None:
    z, outer = normal(*SHAPE, seed=5, dtype=dtype), normal(OUTPUTS, HIDDEN, seed=6, dtype=dtype)
    difference = Dense(normal(COUNT, *SHAPE, seed=1, dtype=dtype))
    kept = difference.delta.clone()
    found = kernels.on(z).perceptron("gelu", 0.0, Value(z), difference, None, outer)
    assert found is not None
    assert torch.equal(difference.delta, kept)
    torch.testing.assert_close(found.dense().double(), exact("gelu", z, difference, None, outer), rtol=1e-4, atol=1e-5)


def test_what_it_does_not_take() -> None:
    z, outer = normal(*SHAPE, seed=5).float(), normal(OUTPUTS, HIDDEN, seed=6).float()
    none = Dense(torch.zeros(0, *SHAPE))
    for value, difference, matrix in (
        (z.half(), Dense(torch.zeros(1, *SHAPE).half()), outer.half()),
        (z, Dense(torch.zeros(1, *SHAPE).double()), outer),
        (z, none, outer),
    ):
        assert kernels.on(z).perceptron("relu", 0.0, Value(value), difference, None, matrix) is None


class Perceptrons(nn.Module):
    """Perceptrons behind attention, whose weights make differences of all kinds, and behind an embedding."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.qkv, self.output = nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide = nn.Sequential(nn.Linear(8, 16), function, nn.Linear(16, 8, bias=False))
        self.chain = nn.Sequential(nn.Linear(8, 12, bias=False), function, nn.Linear(12, 12), function)
        self.head = nn.Linear(12, 5)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.table(symbols)
        parts = (p.unflatten(2, (4, -1)).transpose(1, 2) for p in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.output(F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.wide(self.norms[1](x))
        out: Tensor = self.head(self.chain(x)).flatten(0, 1)
        return out


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky relu": nn.LeakyReLU(SLOPE),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By blocks of every size, by the parts' rules, and by full forwards."""
    model = initialize(Perceptrons(ACTIVATIONS[name]), dtype=torch.float64)
    symbols = torch.arange(24).reshape(4, 6) * 5 % 9
    labels = torch.arange(24) % 5
    options: dict[str, Any] = {"step_size": 0.1, "sparsity": some_coordinates(model, most=9)}
    expected = estimate(model, F.cross_entropy, symbols, labels, dz.SequentialEvaluator(), **options)
    evaluator = dz.PropagationEvaluator(verify=False)
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator, **options)  # exported once
    taken: list[str] = []
    kernel = perceptron_kernels.perceptron

    def counted(function: str, *arguments: object) -> object:
        taken.append(function)
        return kernel(function, *arguments)  # type: ignore[arg-type]

    for block in SIZES:
        monkeypatch.setattr(row_blocks, "BLOCK", block)
        monkeypatch.setattr(cpu_kernels, "perceptron", counted)
        before = len(taken)
        assert_close(zo.estimate(symbols, labels).gradients, expected.gradients, 1e-9)
        assert len(taken) > before
    monkeypatch.setattr(cpu_kernels, "perceptron", lambda *_: None)
    assert_close(zo.estimate(symbols, labels).gradients, expected.gradients, 1e-9)


def test_values_between_the_layers_that_are_read_elsewhere() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            bent = F.gelu(hidden)
            out: Tensor = self.second(bent) + self.third(F.relu(hidden)) + bent[:, :5]
            return out

    model = initialize(Read(), dtype=torch.float64)
    x, y = normal(3, 4, seed=1, dtype=torch.float64), torch.arange(3)
    expected = estimate(model, F.cross_entropy, x, y, dz.SequentialEvaluator(), step_size=0.1)
    found = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), step_size=0.1)
    assert_close(found.gradients, expected.gradients, 1e-9)
