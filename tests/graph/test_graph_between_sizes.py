"""A batch whose size lies between two exported ones has the graph that an export would give it, or is exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import library
from deepzero.graph.between_sizes import Sizes, graph_between, sizes_of
from deepzero.graph.capture import Graph, capture
from deepzero.graph.library import KEPT, Library, PreparedProgram, share_constants
from deepzero.objective import NetworkObjective

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every batch for which a program was exported."""
    rows: list[int] = []

    def counting(objective: Any, batch: tuple[Any, ...], *rest: Any) -> Graph:
        rows.append(len(batch[0]))
        return capture(objective, batch, *rest)

    monkeypatch.setattr(library, "capture", counting)
    return rows


def conv() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return initialize(nn.Sequential(*layers))


def images(rows: int) -> tuple[Tensor, Tensor]:
    return normal(rows, 1, 6, 6, seed=rows), torch.arange(rows) % 3


class Attention(nn.Module):
    """A causal layer over sentences of any length, with learned places."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(11, 8), nn.Parameter(torch.zeros(64, 8))
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, length = tokens.shape
        h = self.symbols(tokens) + self.places[:length]
        q, k, v = self.qkv(h).view(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, length, 8)
        return self.head(F.gelu(h + mixed)).flatten(0, 1)


def sentences(length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(3 * (length + 1)).view(3, -1) * 7 % 11
    return tokens[:, :-1], tokens[:, 1:].flatten()


def exact(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss(model(x), y), list(named.values())), strict=True))


@pytest.mark.parametrize(("make", "batch"), [(conv, images), (lambda: initialize(Attention()), sentences)])
def test_sizes_between_two_exported_ones_are_not_exported(make: Any, batch: Any, captured: list[int]) -> None:
    model = make()
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    for size in (9, 33, 20, 10, 32, 21):
        found = zo.estimate(*batch(size))
        assert_close(found.gradients, exact(model, F.cross_entropy, *batch(size)), 1e-4)
    assert len(captured) == 2
    zo.estimate(*batch(40))
    assert len(captured) == 3, "beyond what was seen, nothing is concluded"


@pytest.mark.parametrize(("make", "batch"), [(conv, images), (lambda: initialize(Attention()), sentences)])
def test_the_graph_is_that_of_an_export(make: Any, batch: Any) -> None:
    objective = NetworkObjective(make(), F.cross_entropy)
    low, high, between = (capture(objective, batch(size)) for size in (8, 36, 17))
    found = graph_between(low, high, Sizes(8, 36, 17))
    assert found is not None
    assert found.digest() == between.digest()
    assert found.digest() not in (low.digest(), high.digest())


class Conditional(nn.Module):
    """A layer whose outputs are multiplied by something that depends on the number of rows."""

    def __init__(self, factor: Callable[[int], Any]) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor(len(x))


def rows_of(count: int) -> tuple[Tensor, Tensor]:
    return normal(count, 4, seed=count), torch.arange(count) % 3


FACTORS: dict[str, Callable[[int], Any]] = {
    "parity": lambda rows: 3 if rows % 2 else 1,
    "one size": lambda rows: 3 if rows == 15 else 1,
    "threshold between": lambda rows: 3.0 if rows > 12 else 1.0,
    "whole threshold between": lambda rows: 3 if rows > 12 else 1,
    "fraction": lambda rows: 1 / rows,
    "half": lambda rows: rows // 2,
    "bound": lambda rows: min(rows, 16),
    "square": lambda rows: rows * rows,
    "tensor of its own": lambda rows: torch.full((3,), 1.0 + rows, dtype=torch.float64),
}


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)
def test_what_depends_on_a_size_in_another_way_is_exported(factor: Callable[[int], Any], captured: list[int]) -> None:
    model = initialize(Conditional(factor))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    for rows in (10, 20, 15):
        found = zo.estimate(*rows_of(rows))
        assert_close(found.gradients, exact(model, F.cross_entropy, *rows_of(rows)), 1e-4)
    assert captured == [10, 20, 15]


@pytest.mark.parametrize("name", ["threshold between", "whole threshold between", "fraction", "tensor of its own"])
def test_graphs_that_differ_in_more_than_integers_on_a_line_have_none_between_them(name: str) -> None:
    factor = FACTORS[name] if "whole" not in name else lambda rows: 3 if rows > 12 else 0
    objective = NetworkObjective(initialize(Conditional(factor)), F.cross_entropy)
    low, high = (capture(objective, rows_of(rows)) for rows in (10, 20))
    assert graph_between(low, high, Sizes(10, 20, 15)) is None


def test_a_multiple_of_the_size_is_followed(captured: list[int]) -> None:
    model = initialize(Conditional(lambda rows: 2 * rows + 1))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    for rows in (10, 20, 15):
        assert_close(zo.estimate(*rows_of(rows)).gradients, exact(model, F.cross_entropy, *rows_of(rows)), 1e-4)
    assert captured == [10, 20]


def test_another_mode_has_graphs_of_its_own(captured: list[int]) -> None:
    model = conv()
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    zo.estimate(*images(10))
    zo.estimate(*images(20))
    model.eval()
    assert_close(zo.estimate(*images(15)).gradients, exact(model, F.cross_entropy, *images(15)), 1e-4)
    assert captured == [10, 20, 15]


def test_the_ends_are_kept_while_sizes_between_them_come(captured: list[int]) -> None:
    model = initialize(Conditional(lambda rows: rows))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    for rows in (2, 40, *range(3, 3 + 2 * KEPT)):
        zo.estimate(*rows_of(rows))
    assert captured == [2, 40]


def shape(*sizes: int) -> Any:
    return ((torch.Size(sizes), torch.float32), "spec")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((shape(2, 5), shape(8, 5), shape(4, 5)), Sizes(2, 8, 4)),
        ((shape(2, 6), shape(8, 24), shape(4, 12)), Sizes(2, 8, 4)),
        ((shape(2, 6), shape(8, 24), shape(4, 13)), None),
        ((shape(2, 5), shape(8, 5), shape(8, 5)), None),
        ((shape(2, 5), shape(8, 5), shape(9, 5)), None),
        ((shape(2, 5), shape(2, 5), shape(4, 5)), None),
        ((shape(2, 5), shape(2, 5), shape(2, 5)), None),
        ((shape(2, 5), shape(8, 5), shape(4)), None),
        (((torch.Size([2]), "a"), (torch.Size([4]), "b"), (torch.Size([3]), "a")), None),
    ],
)
def test_one_size_is_found_in_three_keys(keys: tuple[Any, Any, Any], expected: Sizes | None) -> None:
    assert sizes_of(*keys) == expected


def program_with(constant: Tensor) -> PreparedProgram:
    """A program that holds a tensor of the model's own."""
    model = initialize(nn.Linear(4, 3))
    graph = capture(NetworkObjective(model, lambda o, y: (o * constant).sum()), rows_of(2))
    assert next(iter(graph.constants.values())).nbytes == constant.nbytes
    return PreparedProgram(library.compile_program(graph, dict(model.named_parameters())), graph.digest())


def test_equal_tensors_are_held_once() -> None:
    first, second = program_with(torch.full((3,), 2.0)), program_with(torch.full((3,), 2.0))
    other = program_with(torch.full((3,), 3.0))
    for program in (second, other):
        share_constants(program.program.graph, first.program.graph)
    (one,), (two,), (three,) = (p.program.graph.constants.values() for p in (first, second, other))
    assert one is two
    assert three is not one


def test_old_programs_go_when_their_tensors_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "KEPT_BYTES", 30)
    kept = Library()
    for i in range(5):
        kept._keep((i, 0), program_with(torch.full((3,), float(i))))  # 12 bytes each
    assert [key[0] for key in kept.entries] == [2, 3, 4], "the newest, and 24 bytes beside it"
