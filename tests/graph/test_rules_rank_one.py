"""Rank-one differences: behind pointwise functions and products they are what the dense differences are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import normal
from rule_cases import apply
from torch import Tensor

from deepzero.graph import differences, kernels
from deepzero.graph.differences import Dense, RankOne, TooLargeError

aten = torch.ops.aten
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
RECTIFIERS = pytest.mark.parametrize("rectifier", [(aten.relu.default,), (aten.leaky_relu.default, 0.2)])


def difference(
    count: int, rows: int, size: int, *, groups: int = 2, own: bool = False, full: int = 0, scale: float = 0.3
) -> RankOne:
    """Rows with coefficients of all sizes, some of them 0; directions of their ``own`` for each row, or of all rows."""
    coefficients = scale * normal(count, rows, seed=1) * normal(count, rows, seed=2).exp()
    coefficients[:, ::3] = 0
    places = torch.arange(count * rows)[::5][:full]
    coefficients.view(-1)[places] = 0
    directions = normal(groups, rows if own else 1, size, seed=3)
    members = torch.arange(count) * groups // count
    given = (places, normal(len(places), size, seed=4)) if full else (None, None)
    return RankOne(coefficients, directions, members, torch.Size((rows, size)), *given)


def cast(found: RankOne, dtype: torch.dtype) -> RankOne:
    rows = None if found.rows is None else found.rows.to(dtype)
    return RankOne(
        found.coefficients.to(dtype), found.directions.to(dtype), found.groups, found.shape, found.places, rows
    )


def both(target: tuple[Any, ...], base: Tensor, given: RankOne) -> tuple[Any, Tensor]:
    """What a rule makes of a rank-one difference, and of the same written out."""
    function, *options = target
    found = apply(function, (base, given), *options)
    dense = apply(function, (base, Dense(given.dense())), *options)
    assert isinstance(dense, Dense)
    return found, dense.delta


@DTYPES
@RECTIFIERS
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("full", [0, 3])
@pytest.mark.parametrize("scale", [1e-6, 0.3, 30.0])
def test_a_relu_keeps_multiples(
    rectifier: tuple[Any, ...], dtype: torch.dtype, own: bool, full: int, scale: float
) -> None:
    given = cast(difference(12, 9, 37, own=own, full=full, scale=scale), dtype)
    found, dense = both(rectifier, normal(9, 37).to(dtype), given)
    assert isinstance(found, RankOne)
    torch.testing.assert_close(found.dense(), dense, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=0)
    if scale < 1e-3:
        assert found.places is not None
        assert len(found.places) == full, "no other row has an entry that changes its sign"


@RECTIFIERS
def test_without_a_kernel_a_relu_does_the_same(rectifier: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given, base = difference(12, 9, 37, own=True, full=3), normal(9, 37)
    base[2, 3] = 0
    fused = apply(rectifier[0], (base, given), *rectifier[1:])
    monkeypatch.setattr(kernels, "BY_DEVICE", {})
    plain = apply(rectifier[0], (base, given), *rectifier[1:])
    assert isinstance(plain, RankOne)
    assert isinstance(fused, RankOne)
    torch.testing.assert_close(plain.dense(), fused.dense())
    assert torch.equal(plain.coefficients, fused.coefficients)


@DTYPES
@pytest.mark.parametrize("special", [0.0, -0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("width", [5, 64, 70])
def test_special_base_values(special: float, width: int, dtype: torch.dtype) -> None:
    base = normal(4, width).to(dtype)
    base[1, width - 1] = special
    given = cast(difference(6, 4, width, groups=1), dtype)
    given.coefficients[:, 1] = normal(6, seed=9)
    found, dense = both((aten.relu.default,), base, given)
    torch.testing.assert_close(found.dense(), dense, equal_nan=True)


@DTYPES
@pytest.mark.parametrize("special", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["coefficient", "direction"])
def test_special_differences(special: float, where: str, dtype: torch.dtype) -> None:
    given = cast(difference(6, 4, 33, groups=1, own=True), dtype)
    if where == "coefficient":
        given.coefficients[2, 1] = special
    else:
        given.directions[0, 1, 32] = special
    found, dense = both((aten.relu.default,), normal(4, 33).to(dtype), given)
    torch.testing.assert_close(found.dense(), dense, equal_nan=True)


def test_an_entry_that_is_zero_moves_to_either_side() -> None:
    base, up = torch.zeros(1, 2), torch.tensor([[[1.0, -1.0]]])
    given = RankOne(torch.tensor([[0.5], [-0.5]]), up, torch.zeros(2, dtype=torch.int64), torch.Size((1, 2)))
    found, _ = both((aten.relu.default,), base, given)
    assert found.dense().tolist() == [[[0.5, 0.0]], [[0.0, 0.5]]]


@pytest.mark.parametrize("function", ["tanh", "gelu", "silu", "sigmoid", "elu"])
@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("full", [0, 3])
def test_other_functions_follow_the_rows_that_differ(function: str, share: float, full: int) -> None:
    given = difference(8, 10, 6, full=full)
    given.coefficients[:, int(10 * share) :] = 0
    found, dense = both((getattr(aten, function).default,), normal(10, 6), given)
    assert isinstance(found, Dense if share == 1.0 else RankOne)
    torch.testing.assert_close(found.dense(), dense, rtol=1e-13, atol=1e-15)


def test_many_groups_of_few_give_rows_in_full() -> None:
    found, dense = both((aten.relu.default,), normal(10, 6), difference(8, 10, 6, groups=8))
    torch.testing.assert_close(found.dense(), dense, rtol=1e-13, atol=0)


def test_one_perturbation_without_samples() -> None:
    given = RankOne(torch.zeros(1, 0), torch.ones(1, 1, 6), torch.zeros(1, dtype=torch.int64), torch.Size((0, 6)))
    found, dense = both((aten.relu.default,), torch.zeros(0, 6), given)
    assert found.dense().shape == dense.shape


def test_directions_of_groups_without_a_perturbation_do_not_go_through_a_matrix() -> None:
    given, weight = difference(4, 10, 6, groups=2), normal(5, 6)
    many = replace(given, directions=torch.cat([normal(7, 1, 6, seed=20), given.directions]), groups=given.groups + 7)
    found, dense = both((aten.linear.default, weight), normal(10, 6), many)
    assert found.directions.shape == (2, 1, 5)
    torch.testing.assert_close(found.dense(), dense, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function", [aten.relu.default, aten.tanh.default])
def test_what_is_too_large_is_refused_unless_it_is_one(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "ROOM", 100)
    with pytest.raises(TooLargeError):
        apply(function, (normal(10, 6), difference(8, 10, 6, groups=4)))
    found, dense = both((function,), normal(10, 6), difference(1, 10, 6, groups=1))
    torch.testing.assert_close(found.dense(), dense, rtol=1e-13, atol=0)


def test_a_wide_layer_is_refused_where_it_would_take_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(differences, "ROOM", 1000)
    weight = normal(40, 6)
    with pytest.raises(TooLargeError):
        apply(aten.linear.default, (normal(10, 6), difference(8, 10, 6, groups=4, own=True, full=3)), weight)
    given = difference(8, 10, 6, groups=4, own=True)
    found, dense = both((aten.linear.default, weight), normal(10, 6), given)
    torch.testing.assert_close(found.dense(), dense, rtol=1e-12, atol=1e-14)
