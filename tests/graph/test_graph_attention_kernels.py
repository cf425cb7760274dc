"""Attention by blocks does what the rule composes of plain operations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import normal, seeded
from rule_cases import apply
from torch import Tensor

from deepzero.graph.cpu import attention_kernels
from deepzero.graph.differences import Channel, Dense, Difference
from deepzero.graph.kernels import NONE

attend = torch.ops.aten.scaled_dot_product_attention.default
LEADS = {"samples and heads": (3, 2), "one leading dimension": (4,), "none": (), "three": (2, 1, 3)}
PARTS = [parts for parts in itertools.product((True, False), repeat=3) if parts[0] or parts[1]]
MASKS = ("none", "causal", "boolean", "added", "a row of nothing")


def mask_of(name: str, rows: int, keys: int, dtype: torch.dtype) -> Tensor | None:
    if name in ("none", "causal"):
        return None
    allowed = torch.rand(rows, keys, generator=seeded(3)) < 0.6
    allowed[:, 1] = True
    if name == "a row of nothing":
        allowed[2] = False
    return allowed if name != "added" else normal(rows, keys, seed=4, dtype=dtype).masked_fill(~allowed, -math.inf)


def operands(
    lead: tuple[int, ...], parts: tuple[bool, ...], size: float, dtype: torch.dtype, *, on_head: bool = False
) -> list[tuple[Tensor, Difference | None]]:
    """q, k and v, of which some differ, perhaps in one head alone; nothing of them is contiguous."""
    found: list[tuple[Tensor, Difference | None]] = []
    for place, (rows, differs) in enumerate(zip((5, 7, 7), parts, strict=True)):
        width = 3 if place == 2 else 4
        base = normal(*lead, width, rows, seed=place, dtype=dtype).mT
        delta = size * normal(6, *lead, width, rows, seed=9 + place, dtype=dtype).mT
        difference: Difference = Dense(delta)
        if on_head:
            channels = torch.tensor([0, 0, 1, 1, 1, 0])
            difference = Channel(1, channels, delta[:, :, 0], base.shape)
        found.append((base, difference if differs else None))
    return found


def both(
    monkeypatch: pytest.MonkeyPatch, arguments: list[tuple[Tensor, Difference | None]], mask: str
) -> tuple[Tensor, Tensor]:
    """The rule with the kernel, which must answer, and without it."""
    query, key, _ = arguments
    own = mask_of(mask, query[0].shape[-2], key[0].shape[-2], query[0].dtype)
    answers: list[Tensor | None] = []

    def watched(*args: object) -> Tensor | None:
        answers.append(attention_kernels.attention(*args))  # type: ignore[arg-type]
        return answers[-1]

    with monkeypatch.context() as patch:
        patch.setattr("deepzero.graph.cpu.cpu_kernels.attention", watched)
        fused = apply(attend, *arguments, own, 0.0, mask == "causal")
        patch.setattr("deepzero.graph.kernels.on", lambda _: NONE)
        plain = apply(attend, *arguments, own, 0.0, mask == "causal")
    assert answers
    assert all(answer is not None for answer in answers)
    assert not isinstance(fused, tuple)
    assert not isinstance(plain, tuple)
    assert fused is not None
    assert plain is not None
    return fused.dense(), plain.dense()


def closeness(plain: Tensor, size: float = 0.0) -> dict[str, float]:
    """Of two ways to round, relative to the largest entry; scores, which are exponents, grow with the square of a size."""
    most = plain[plain.isfinite()].abs().amax().item()
    rounding = torch.finfo(plain.dtype).eps * 100 * (1 + size**2 / 10)
    return {"rtol": rounding, "atol": rounding * most}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [1e-4, 0.3, 40.0])
def test_attention_by_blocks(monkeypatch: pytest.MonkeyPatch, mask: str, size: float, dtype: torch.dtype) -> None:
    for lead, parts in itertools.product(LEADS.values(), PARTS):
        before = operands(lead, parts, size, dtype)
        fused, plain = both(monkeypatch, before, mask)
        torch.testing.assert_close(fused, plain, **closeness(plain, size))
        for (_, kept), (_, fresh) in zip(before, operands(lead, parts, size, dtype), strict=True):
            assert kept is None or torch.equal(kept.dense(), fresh.dense())  # type: ignore[union-attr]


def test_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken two rows and four terms at a time: there are more and less of them."""
    for rows, keys, width, features in ((1, 1, 1, 1), (2, 9, 5, 3), (17, 3, 2, 33), (5, 18, 7, 1), (20, 20, 16, 16)):
        shapes = ((rows, width), (keys, width), (keys, features))
        base = [normal(2, 3, *shape, seed=place) for place, shape in enumerate(shapes)]
        arguments: list[tuple[Tensor, Difference | None]] = [
            (z, Dense(0.3 * normal(4, *z.shape, seed=7 + place))) for place, z in enumerate(base)
        ]
        for mask in ("none", "causal"):
            fused, plain = both(monkeypatch, arguments, mask)
            torch.testing.assert_close(fused, plain, **closeness(plain))


@pytest.mark.parametrize("parts", PARTS)
def test_one_head_after_the_other(monkeypatch: pytest.MonkeyPatch, parts: tuple[bool, ...]) -> None:
    fused, plain = both(monkeypatch, operands((3, 2), parts, 0.3, torch.float64, on_head=True), "causal")
    torch.testing.assert_close(fused, plain, **closeness(plain))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_on_its_rows(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    arguments = operands((3, 2), (True, False, False), 0.1, torch.float64)
    base, difference = arguments[0]
    assert isinstance(difference, Dense)
    moved = difference.delta.clone()
    moved[2, 1, 0, 3, 1] = value
    fused, plain = both(monkeypatch, [(base, Dense(moved)), *arguments[1:]], "none")
    assert torch.equal(fused.isfinite(), plain.isfinite())
    assert not bool(fused[2, 1, 0, 3].isfinite().any())
    torch.testing.assert_close(fused[fused.isfinite()], plain[plain.isfinite()], **closeness(plain))


def test_what_may_not_be_attended_to_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that comes later may differ by any amount, or by nothing that is a number."""
    arguments = operands((3, 2), (False, True, False), 0.1, torch.float64)
    base, difference = arguments[1]
    assert isinstance(difference, Dense)
    moved = difference.delta.clone()
    moved[..., 6, :] = math.nan
    fused, _ = both(monkeypatch, [arguments[0], (base, Dense(moved)), arguments[2]], "causal")
    finite, _ = both(monkeypatch, arguments, "causal")
    torch.testing.assert_close(fused, finite, **closeness(finite))


def test_declines() -> None:
    """Grouped queries, half types, nothing to attend to, and scores that do not differ are left to the rule."""
    q, weights = normal(2, 4, 5, 3), torch.ones(2, 4, 5, 5)
    grouped, change = normal(2, 2, 5, 3), normal(6, 2, 4, 5, 3)
    decline = attention_kernels.attention
    assert decline((q, change), (grouped, None), (grouped, None), 1.0, weights, weights) is None
    assert decline((q, None), (q, None), (q, change), 1.0, weights, weights) is None
    half = [t.bfloat16() for t in (q, change, weights)]
    assert decline((half[0], half[1]), (half[0], None), (half[0], None), 1.0, half[2], half[2]) is None
    empty = (q[:, :, :, :0], change[..., :0])
    assert decline(empty, (empty[0], None), (q, None), 1.0, weights, weights) is None
