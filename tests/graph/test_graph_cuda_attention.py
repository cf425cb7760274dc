"""The program for attention on a GPU does what the rule composes of plain operations; see test_graph_cuda_kernels.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from oracle import assert_close, estimate, exported_once, initialize, some_coordinates
from rule_cases import apply
from test_graph_cuda_kernels import DEVICE, EXACT, LABELS, close, float32, pytestmark
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import kernels as by_device
from deepzero.graph.cuda import cuda_attention_kernels, cuda_kernels, cuda_row_kernels
from deepzero.graph.differences import Channel, Dense, Difference
from deepzero.graph.precision import Precision, computing_in

__all__ = ["pytestmark"]

attend = torch.ops.aten.scaled_dot_product_attention.default
PARTS = [parts for parts in itertools.product((True, False), repeat=3) if parts[0] or parts[1]]
SIZES = {"samples and heads": ((2, 3), 5, 7, 4), "one head": ((1,), 17, 70, 20), "nothing in front": ((), 3, 2, 3)}
"""Leading dimensions, queries, keys, features: blocks that are partly filled, and several of them."""
MASKS = ("none", "causal", "boolean", "added")
large = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


def operands(size: str, parts: tuple[bool, ...], scale: float) -> list[tuple[Tensor, Tensor | None]]:
    """q, k and v and their changes; nothing of them is contiguous."""
    lead, queries, keys, features = SIZES[size]
    found: list[tuple[Tensor, Tensor | None]] = []
    for place, (rows, differs) in enumerate(zip((queries, keys, keys), parts, strict=True)):
        width = features + (place == 2)
        base = float32(*lead, width, rows, seed=place).mT
        found.append((base, scale * float32(2, *lead, width, rows, seed=9 + place).mT if differs else None))
    return found


def mask_of(name: str, size: str) -> Tensor | None:
    _, queries, keys, _ = SIZES[size]
    if name in ("none", "causal"):
        return None
    allowed = float32(queries, keys, seed=4) < 0.4
    allowed[0] = False  # a row of nothing
    return allowed if name == "boolean" else float32(queries, keys, seed=5).masked_fill(~allowed, -math.inf)


def by_the_program(found: list[tuple[Tensor, Tensor | None]], mask: Tensor | None, causal: bool) -> Tensor:
    arguments: list[tuple[Tensor, Difference | None]] = [(base, None if d is None else Dense(d)) for base, d in found]
    with pytest.MonkeyPatch.context() as patch:
        own = by_device.SomeKernels(cuda_attention_kernels)
        patch.setattr("deepzero.graph.kernels.on", lambda _: own)
        change = apply(attend, *arguments, mask, 0.0, causal)
    assert isinstance(change, Dense)
    return change.delta


def plainly(found: list[tuple[Tensor, Tensor | None]], mask: Tensor | None, causal: bool) -> Tensor:
    """In float64, where the plain difference has digits enough for float32."""
    wide = None if mask is None else mask if mask.dtype is torch.bool else mask.double()
    bases = [base.double() for base, _ in found]
    before = attend(*bases, wide, 0.0, causal)
    moved = [base if d is None else base + d.double() for base, (_, d) in zip(bases, found, strict=True)]
    count = next(len(d) for _, d in found if d is not None)
    parts = [[m if d is None else m[p] for m, (_, d) in zip(moved, found, strict=True)] for p in range(count)]
    return torch.stack([attend(*part, wide, 0.0, causal) - before for part in parts])


@large
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 10.0])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("size", SIZES)
def test_changes_of_queries_keys_and_values(size: str, parts: tuple[bool, ...], scale: float) -> None:
    """Any of them may differ, by little or by so much that exponentials would overflow."""
    found = operands(size, parts, scale)
    tolerance = 1e-5 * (1 + scale**2)  # scores, which are exponents, grow with the square of a change
    close(by_the_program(found, None, False), plainly(found, None, False), tolerance)


@large
@pytest.mark.parametrize("name", MASKS[1:])
@pytest.mark.parametrize("size", SIZES)
def test_masks(size: str, name: str) -> None:
    found, mask = operands(size, (True, True, True), 0.1), mask_of(name, size)
    expected = plainly(found, mask, name == "causal")
    if mask is not None:
        expected[..., 0, :] = torch.cat(
            [torch.zeros_like(expected[..., 0, :])]
        )  # a row of nothing is 0 before and after
    close(by_the_program(found, mask, name == "causal"), expected, 1e-5)


def test_what_is_no_number_stays_in_its_row_and_perturbation() -> None:
    found = operands("samples and heads", (True, False, False), 0.1)
    assert found[0][1] is not None
    found[0][1][1, 1, 2, 3] = torch.nan
    seen = by_the_program(found, None, False).isnan()
    assert seen[1, 1, 2, 3].all()
    assert seen.sum() == seen[1, 1, 2, 3].numel()


def test_products_in_tf32_are_taken_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Programs:
        """Takes any grid and arguments, and notes the precision."""

        def __getitem__(self, _: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **options: asked.append(options["PRECISION"])

        attention = property(lambda self: self)

    monkeypatch.setattr(cuda_attention_kernels, "programs", Programs)
    for how in (EXACT, Precision(tf32=True)):
        with computing_in(how):
            by_the_program(operands("one head", (True, False, False), 0.1), None, False)
    assert asked == ["ieee", "tf32"]


def test_what_the_program_does_not_take() -> None:
    """Grouped queries, float64, and features beyond its blocks are left to the plain rule."""
    q, k = float32(2, 4, 3, 8), float32(2, 4, 5, 8)
    weights = (q @ k.mT).log_softmax(-1)
    take = cuda_attention_kernels.attention

    def asked(query: Tensor, key: Tensor, logs: Tensor) -> Tensor | None:
        return take((query, query.unsqueeze(0)), (key, None), (key, None), 1.0, logs.exp(), logs)

    assert asked(q, k, weights) is not None
    assert asked(q, k[:, :2], weights) is None
    assert asked(q.double(), k.double(), weights.double()) is None
    wide = float32(2, 4, 3, 129)
    assert asked(wide, float32(2, 4, 5, 129), weights) is None
    assert take((q, None), (k, None), (k, k.unsqueeze(0)), 1.0, weights.exp(), weights) is None


@pytest.mark.parametrize("own_head", [True, False])
def test_one_head_of_some_perturbations(own_head: bool) -> None:
    """A head of its own for each perturbation: perturbations are a leading dimension of base values, too."""
    base = [float32(2, 3, 5, 4, seed=n) for n in range(3)]
    channels = torch.tensor([0, 2, 1] if own_head else [1, 1, 1], device=DEVICE)
    delta = 0.1 * float32(3, 2, 5, 4, seed=7)
    query: Difference = Channel(1, channels, delta, base[0].shape)
    with pytest.MonkeyPatch.context() as patch:
        own = by_device.SomeKernels(cuda_attention_kernels)
        patch.setattr("deepzero.graph.kernels.on", lambda _: own)
        change = apply(attend, (base[0], query), (base[1], None), (base[2], None))
    assert isinstance(change, Channel)
    close(change.dense(), plainly([(base[0], query.dense()), (base[1], None), (base[2], None)], None, False), 1e-5)


def test_a_transformer_by_programs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
    model = initialize(nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 5)), dtype=torch.float32).to(DEVICE)
    x, chosen = float32(5, 4, 8), some_coordinates(model, most=2)
    seen = []
    plain = cuda_attention_kernels.attention
    monkeypatch.setattr(cuda_attention_kernels, "attention", lambda *a: seen.append(1) or plain(*a))
    programs = by_device.SomeKernels(cuda_kernels, cuda_row_kernels, cuda_attention_kernels)
    results, graphs = [], []
    for own in (programs, by_device.NONE):
        monkeypatch.setitem(by_device.BY_DEVICE, DEVICE.type, own)
        evaluator = dz.PropagationEvaluator(verify=False)
        loss = nn.functional.cross_entropy
        with exported_once(graphs):
            results.append(estimate(model, loss, x, LABELS.to(DEVICE), evaluator, step_size=1e-3, sparsity=chosen))
    assert seen
    assert_close(results[0].gradients, results[1].gradients, 1e-4)
