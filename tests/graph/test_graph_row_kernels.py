"""Compiled normalization, softmax and cross entropy against float64, for rows of any dimension and differences of any kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import normal, seeded
from rule_cases import apply
from torch import Tensor

from deepzero.graph.cpu import row_kernels
from deepzero.graph.differences import Channel, Dense, Difference

aten = torch.ops.aten
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-11}
COUNT = 5
SHAPE = (3, 4, 7)


def differences(
    shape: tuple[int, ...], scale: float, dtype: torch.dtype, count: int = COUNT
) -> dict[str, Channel | Dense]:
    """Dense ones in memory of several orders, and those of one channel of each axis."""
    dense = (scale * normal(count, *shape, seed=3)).to(dtype)
    found: dict[str, Channel | Dense] = {
        "dense": Dense(dense),
        "turned": Dense(dense.movedim(1, -1).contiguous().movedim(-1, 1)),
        "expanded": Dense(dense[:, :1].expand(dense.shape)),
        "sliced": Dense(torch.cat([dense, dense], -1)[..., : shape[-1]]),
        "single": Dense(dense[:1]),
    }
    for axis, size in enumerate(shape):
        rest = [s for k, s in enumerate(shape) if k != axis]
        channels = torch.randint(0, size, (count,), generator=seeded(axis))
        own = (scale * normal(count, *rest, seed=4 + axis)).to(dtype)
        found[f"channel {axis}"] = Channel(axis, channels, own, torch.Size(shape))
        found[f"turned channel {axis}"] = Channel(axis, channels, own.mT.contiguous().mT, torch.Size(shape))
    return found


def exact(target: Any, z: Tensor, difference: Channel | Dense, *args: Any, **kwargs: Any) -> Tensor:
    """The plain difference in float64, for each perturbation."""
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    before = target(z.double(), *wide, **kwargs)
    return torch.stack([target(z.double() + d, *wide, **kwargs) - before for d in difference.dense().double()])


def agree(found: Any, expected: Tensor, tolerance: float, what: str) -> None:
    assert isinstance(found, Difference)
    delta = found.dense().double()
    assert delta.shape == expected.shape, what
    worst = float((delta - expected).abs().max() / expected.abs().max().clamp(min=1e-5))
    assert worst <= tolerance, f"{what}: off by {worst:.3g}"


@DTYPES
@pytest.mark.parametrize("scale", [1e-3, 0.5])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_and_rms_norm(affine: bool, dims: int, scale: float, dtype: torch.dtype) -> None:
    z, own = normal(*SHAPE).to(dtype), list(SHAPE[-dims:])
    weight, bias = (normal(*own, seed=k).to(dtype) for k in (1, 2)) if affine else (None, None)
    for kind, difference in differences(SHAPE, scale, dtype).items():
        before = difference.delta.clone()
        for target, args in (
            (aten.layer_norm.default, (own, weight, bias, 1e-5)),
            (aten.rms_norm.default, (own, weight, 1e-5)),
        ):
            found = apply(target, (z, difference), *args)
            agree(
                found,
                exact(target, z, difference, *args),
                30 * TOLERANCES[dtype] / min(1, 10 * scale),
                f"{target} {kind}",
            )
            if isinstance(difference, Channel) and difference.axis < len(SHAPE) - dims:
                assert isinstance(found, Channel)
        assert torch.equal(difference.delta, before)


def refused(*_: object) -> bool:
    return False


@DTYPES
def test_all_are_the_composed_rules(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """On rows long and short, one of one entry; with a tiny and with a large difference; NaN and infinity where they have it."""
    for rows, width in ((1, 1), (65, 3), (2, 300)):
        z = (2 * normal(rows, width)).to(dtype)
        weight, labels = normal(width, seed=1).to(dtype), torch.randint(0, width, (rows,), generator=seeded(2))
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (aten.layer_norm.default, ([width], weight, None, 1e-5)), (aten.rms_norm.default, ([width], None, None)),
            (aten.softmax.int, (-1,)), (aten.log_softmax.int, (1,)),
            *((aten.cross_entropy_loss.default, (labels, None, reduction)) for reduction in (0, 1, 2)),
        ]  # fmt: skip
        for scale in (1e-6, 3.0, 50.0):
            for kind, difference in differences((rows, width), scale, dtype).items():
                for target, args in calls:
                    fast = apply(target, (z, difference), *args)
                    with monkeypatch.context() as patch:
                        patch.setattr(row_kernels, "applies", refused)
                        plain = apply(target, (z, difference), *args)
                    assert isinstance(fast, Difference)
                    assert isinstance(plain, Difference)
                    a, b = fast.dense().double(), plain.dense().double()
                    error = float(
                        (a - b).abs().max() / b.abs().max().clamp(min=1e-2 * min(scale, 1) if width > 1 else scale)
                    )
                    assert error <= 40 * TOLERANCES[dtype], (
                        f"{target} {kind} at {scale} on rows of {width}: {error:.3g}"
                    )


@DTYPES
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_of_any_dimension(dim: int, scale: float, dtype: torch.dtype) -> None:
    z = (3 * normal(*SHAPE)).to(dtype)
    for kind, difference in differences(SHAPE, scale, dtype).items():
        for target in (aten.softmax.int, aten.log_softmax.int):
            expected = exact(target, z, difference, dim)
            agree(
                apply(target, (z, difference), dim),
                expected,
                2e2 * TOLERANCES[dtype] / min(1, scale),
                f"{target} {kind}",
            )


@DTYPES
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("reduction", [0, 1, 2], ids=["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 5), (5,), (3, 5, 4), (2, 5, 3, 2)], ids=str)
def test_cross_entropy(shape: tuple[int, ...], reduction: int, scale: float, dtype: torch.dtype) -> None:
    """Classes in dimension 1 or the only one, some samples ignored."""
    dim = 1 if len(shape) > 1 else 0
    z, others = (3 * normal(*shape)).to(dtype), [s for k, s in enumerate(shape) if k != dim]
    labels = torch.randint(0, shape[dim], tuple(others), generator=seeded(1))
    if others:
        labels.view(-1)[0] = 7
    many = (
        differences(shape, scale, dtype)
        if len(shape) > 1
        else {"dense": Dense((scale * normal(COUNT, *shape)).to(dtype))}
    )
    for kind, difference in many.items():
        args = (labels, None, reduction, 7)
        found = apply(aten.cross_entropy_loss.default, (z, difference), *args)
        expected = exact(aten.cross_entropy_loss.default, z, difference, *args)
        agree(found, expected, 3e2 * TOLERANCES[dtype] / min(1, scale), kind)


def test_a_sure_sample_keeps_its_accuracy() -> None:
    """Next to nothing is left of a loss of 1e-7; its change is relative to itself, whatever the kind of difference."""
    z = torch.tensor([[20.0, 2.0, 1.0, 3.0]])
    labels = torch.tensor([0])
    for difference in (
        Dense(1e-2 * normal(COUNT, 1, 4, seed=1).float()),
        Channel(1, torch.tensor([0, 1, 0, 3, 2]), 1e-2 * normal(COUNT, 1, seed=2).float(), z.shape),
    ):
        found = apply(aten.cross_entropy_loss.default, (z, difference), labels)
        d = difference.dense().double()
        expected = torch.log1p(((z.double() + d)[..., 1:] - (z.double() + d)[..., :1]).exp().sum(-1))
        expected = expected - torch.log1p((z.double()[..., 1:] - z.double()[..., :1]).exp().sum(-1))
        assert isinstance(found, Dense)
        torch.testing.assert_close(found.delta.double(), expected.squeeze(1), rtol=1e-4, atol=0)


NARROW = pytest.mark.parametrize("narrow", [0, row_kernels.NARROW], ids=["by rows", "rows side by side"])


@NARROW
@DTYPES
def test_large_differences_do_not_overflow(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, narrow: int) -> None:
    """Probabilities that underflow come back, and logits far apart change places, in one row among usual ones."""
    monkeypatch.setattr(row_kernels, "NARROW", narrow)
    z = torch.cat([torch.tensor([[0.0, -300.0, -150.0, 1.0]]), normal(40, 4)]).to(dtype)
    d = (0.01 * normal(COUNT, 41, 4, seed=1)).to(dtype)
    for row in ([0.0, 600.0, 0.0, 0.0], [-400.0, 0.0, 0.0, -500.0], [9.0, 0.0, 11.0, 0.0]):
        d[2, 0] = torch.tensor(row, dtype=dtype)
        column = Channel(1, torch.tensor([1, 3, 0]), torch.zeros(3, 41, dtype=dtype), z.shape)
        column.delta[0, 0], column.delta[1, 0], column.delta[2, 0] = 600, -500, 30
        for difference in (Dense(d), column):
            for labels in (torch.zeros(41).long(), torch.full((41,), 3), torch.ones(41).long()):
                args = (labels, None, 0)
                found = apply(aten.cross_entropy_loss.default, (z, difference), *args)
                expected = exact(aten.cross_entropy_loss.default, z, difference, *args)
                assert isinstance(found, Dense)
                torch.testing.assert_close(found.delta.double(), expected, rtol=1e-4, atol=2e-5)
        for target in (aten.softmax.int, aten.log_softmax.int):
            found = apply(target, (z, Dense(d)), -1)
            assert isinstance(found, Dense)
            torch.testing.assert_close(found.delta.double(), exact(target, z, Dense(d), -1), rtol=1e-4, atol=2e-6)


@NARROW
@pytest.mark.parametrize("kind", ["dense", "channel 1", "channel 0"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(
    monkeypatch: pytest.MonkeyPatch, value: float, kind: str, narrow: int
) -> None:
    monkeypatch.setattr(row_kernels, "NARROW", narrow)
    z, difference = normal(3, 6).float(), differences((3, 6), 0.1, torch.float32)[kind]
    clean = {t: apply(t, (z, difference), *a) for t, a in _calls(6)}
    difference.delta.view(COUNT, -1)[1, 0] = value
    touched = difference.dense().isfinite().logical_not().any(-1)
    for target, args in _calls(6):
        found, usual = apply(target, (z, difference), *args), clean[target]
        assert isinstance(found, Difference)
        assert isinstance(usual, Difference)
        a, b = found.dense(), usual.dense()
        assert torch.equal(a[~touched], b[~touched])
        if value is torch.nan:
            assert bool(a[touched].isnan().any())


def _calls(width: int) -> list[tuple[Any, tuple[Any, ...]]]:
    return [
        (aten.layer_norm.default, ([width], None, None, 1e-5)), (aten.softmax.int, (-1,)), (aten.log_softmax.int, (-1,)),
        (aten.cross_entropy_loss.default, (torch.tensor([0, 5, 2]), None, 0)),
    ]  # fmt: skip


def test_rows_that_are_masked_stay_what_they_are() -> None:
    """A softmax over nothing but minus infinities is 0 in a safe softmax, and a masked entry gets no weight."""
    z = normal(4, 5)
    z[1], z[2, :3] = -torch.inf, -torch.inf
    difference: Difference = Dense(0.1 * normal(COUNT, 4, 5, seed=1))
    found = apply(aten._safe_softmax.default, (z, difference), -1)
    assert isinstance(found, Dense)
    assert not bool(found.delta[:, 1].any())
    assert not bool(found.delta[:, 2, :3].any())
    expected = torch.stack([aten._safe_softmax(z + d, -1) - aten._safe_softmax(z, -1) for d in difference.dense()])
    torch.testing.assert_close(found.delta, expected, rtol=1e-9, atol=1e-12)
