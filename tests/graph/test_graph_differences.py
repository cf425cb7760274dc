"""The kinds of difference: what they hold, and how they add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import normal

from deepzero.graph.differences import (
    BaseRows,
    Channel,
    Dense,
    Difference,
    LowRank,
    OneHot,
    RankOne,
    add,
    constant_over,
    empty_dense,
    entries,
)

SHAPE = torch.Size((2, 3, 4))


def one_hot() -> OneHot:
    return OneHot(torch.tensor([0, 23, 13]), torch.tensor([1.0, 2.0, 3.0]).double(), SHAPE)


def channel(axis: int = 1, channels: tuple[int, ...] = (2, 2, 0), seed: int = 0) -> Channel:
    rest = [size for d, size in enumerate(SHAPE) if d != axis]
    return Channel(axis, torch.tensor(channels), normal(3, *rest, seed=seed), SHAPE)


def rank_one(rows: int = 1) -> RankOne:
    """Two groups; the last row of the second perturbation is given in full."""
    coefficients = normal(3, 2, 3, seed=7)
    coefficients[1, 1, 2] = 0
    given = torch.tensor([11]), normal(1, 4, seed=9)
    return RankOne(coefficients, normal(2, rows, 4, seed=8), torch.tensor([1, 0, 0]), SHAPE, *given)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("groups", [(1, 0, 0), (0, 0, 0)])
def test_rank_one(rows: int, groups: tuple[int, ...]) -> None:
    difference = replace(rank_one(rows), groups=torch.tensor(groups))
    for p, group in enumerate(groups):
        for row in range(6):
            direction = difference.directions[group, row if rows > 1 else 0]
            expected = difference.coefficients.view(3, 6)[p, row] * direction
            assert difference.rows is not None
            expected = difference.rows[0] if 6 * p + row == 11 else expected
            torch.testing.assert_close(difference.dense().view(3, 6, 4)[p, row], expected)
    torch.testing.assert_close(difference.map(torch.neg).dense(), -difference.dense())


@pytest.mark.parametrize(("width", "side_by_side"), [(3, True), (40, False)])
def test_short_rows_of_one_direction_lie_side_by_side(width: int, side_by_side: bool) -> None:
    coefficients, directions = normal(3, 2, 5, seed=7), normal(2, 1, width, seed=8)
    groups = torch.tensor([1, 0, 0])
    found = RankOne(coefficients, directions, groups, torch.Size((2, 5, width))).dense()
    torch.testing.assert_close(found, coefficients.unsqueeze(-1) * directions[groups].unsqueeze(1))
    assert found.movedim(-1, 1).is_contiguous() is side_by_side
    assert found.is_contiguous() is not side_by_side


def test_one_hot() -> None:
    dense = one_hot().dense()
    assert dense.shape == (3, *SHAPE)
    assert [t.tolist() for t in one_hot().positions()] == [[0, 1, 1], [0, 2, 0], [0, 3, 1]]
    assert dense[1, 1, 2, 3] == 2
    assert int((dense != 0).sum()) == 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channel(axis: int) -> None:
    difference = channel(axis, (1, 1, 0))
    dense = difference.dense()
    assert dense.shape == (3, *SHAPE)
    for p, c in enumerate((1, 1, 0)):
        assert torch.equal(dense[p].select(axis, c), difference.delta[p])
        dense[p].select(axis, c).zero_()
    assert not dense.any()


def test_runs_of_one_channel() -> None:
    assert channel().runs == [(2, 0, 2), (0, 2, 3)]
    assert channel(channels=(1, 1, 1)).runs == [(1, 0, 3)]


@pytest.mark.parametrize("channels", [(1, 1, 1), (2, 2, 0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_channel_of_the_base_broadcasts_against_the_difference(axis: int, channels: tuple[int, ...]) -> None:
    channels = tuple(c % SHAPE[axis] for c in channels)
    base, difference = normal(*SHAPE, seed=3), channel(axis, channels)
    picked = difference.of(base).expand_as(difference.delta)
    for p, c in enumerate(channels):
        assert torch.equal(picked[p], base.select(axis, c))


@pytest.mark.parametrize(
    "left", [one_hot(), channel(), channel(0, (1, 0, 1)), rank_one(), Dense(normal(3, *SHAPE, seed=5))]
)
@pytest.mark.parametrize("right", [one_hot(), channel(seed=1), channel(1, (0, 2, 0)), Dense(normal(3, *SHAPE, seed=6))])
def test_sums(left: Difference, right: Difference) -> None:
    found = add(left, right)
    torch.testing.assert_close(found.dense(), left.dense() + right.dense())
    assert add(left, None) is left
    assert add(None, right) is right


def test_the_sum_of_two_differences_on_the_same_channels_stays_there() -> None:
    assert isinstance(add(channel(), channel(seed=1)), Channel)


@pytest.mark.parametrize("difference", [one_hot(), channel(), rank_one(), Dense(normal(3, *SHAPE))])
def test_entries_hold_everything_that_differs(difference: Difference) -> None:
    torch.testing.assert_close(entries(difference).sum(1), difference.dense().flatten(1).sum(1))
    assert difference.count == 3
    assert difference.nbytes > 0


def test_a_dense_difference_of_images_is_channels_last_in_memory() -> None:
    out = empty_dense(3, torch.Size((2, 5, 4, 4)), torch.zeros(1))
    assert out.shape == (3, 2, 5, 4, 4)
    assert out.stride(2) == 1


def test_a_constant_is_known_from_its_strides() -> None:
    expanded = torch.ones(3, 1, 1).expand(3, 4, 5)
    assert constant_over(expanded, (1, 2))
    assert not constant_over(expanded.clone(), (1, 2)), "equal by chance is not constant"
    assert constant_over(torch.ones(3, 1), (1,))


def low_rank(vectors: int = 3, width: int = 2) -> LowRank:
    """With multiples of base rows; vectors of each perturbation, or of all."""
    rows = BaseRows(normal(2, 3, 4, seed=5))
    return LowRank(
        normal(3, 2, 3, width, seed=3), normal(vectors, width, 4, seed=4), SHAPE, normal(3, 2, 3, seed=6), rows
    )


OTHERS: dict[str, Difference] = {
    "dense": Dense(normal(3, *SHAPE, seed=2)),
    "expanded": Dense(normal(3, 1, 1, 1, seed=2).expand(3, *SHAPE)),
    "one hot": one_hot(),
    **{f"channel {axis}": channel(axis, (1, 0, 1)) for axis in range(3)},
    "rank one": rank_one(),
    "low rank": low_rank(),
    "shared low rank": low_rank(1),
    "low rank of one": low_rank(3, 1),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_sum_takes_memory_that_is_spare_and_no_other(kind: str, spare: bool, turned: bool) -> None:
    other, kept = OTHERS[kind], OTHERS[kind].dense().clone()
    before = normal(3, *SHAPE, seed=11)
    for first in (True, False):
        own = Dense(before.mT.contiguous().mT if turned else before.clone())
        found = add(own, other, (spare, False)) if first else add(other, own, (False, spare))
        assert isinstance(found, Dense)
        assert found.owned
        torch.testing.assert_close(found.delta, before + kept)
        assert (found.delta.data_ptr() == own.delta.data_ptr()) is spare
        assert spare or torch.equal(own.delta, before)
        assert torch.equal(other.dense(), kept)
