"""Pointwise functions of rank-one differences.

A function with one kink, at zero, is linear between the kinks: with z a base value and u a direction, ``relu(z + c u) -
relu(z)`` is ``c u`` where z is positive and 0 elsewhere, for all coefficients c at which no entry of the row changes
its sign. So behind a relu most rows are multiples again, of directions that a whole group of perturbations shares; the
few rows with an entry that does change its sign are given in full. Of any other function all rows are given in full
whose coefficient is not 0.

Legend: p perturbations, g groups, m rows of a value, n entries of a row, r rows given in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Operand
from deepzero.graph.differences import Dense, RankOne
from deepzero.graph.rules.formulas import leaky_relu, relu

SHARED = 2
"""Perturbations that a group must have on average before their directions are worth making."""


def rectified(x: Operand, negative_slope: float = 0.0) -> RankOne | Dense:
    """A leaky relu, or a relu, of a rank-one difference."""
    difference = x.difference
    assert isinstance(difference, RankOne)
    if difference.directions.device.type != "cpu":
        return in_full(x, _change(negative_slope))
    before, base = difference.with_used_directions(), _rows_of(x)
    groups, used = before.groups, len(before.directions)
    if used * SHARED > max(difference.count, SHARED):
        return in_full(x, _change(negative_slope))
    coefficients = difference.coefficients.reshape(difference.count, len(base))
    before.require_room(used * len(base), base.shape[1])
    directions, rates = _behind_kink(before.directions, base, negative_slope)
    straight, places = _separated(coefficients, groups, rates)
    before.require_room(used * len(base) + len(places), base.shape[1])
    places, rows = _rectified_rows(before, places, base, negative_slope)
    return RankOne(straight.reshape(difference.coefficients.shape), directions, groups, difference.shape, places, rows)


def in_full(x: Operand, change: Callable[[Tensor, Tensor], Tensor]) -> RankOne | Dense:
    """``change(z, d)``, which is 0 where d is; only the rows that differ, unless most of them do."""
    difference = x.difference
    assert isinstance(difference, RankOne)
    if difference.count == 1 or difference.directions.device.type != "cpu":  # a GPU would be waited for
        return Dense(change(x.base, difference.dense()), owned=True)
    base, coefficients = _rows_of(x), difference.coefficients
    places = coefficients.flatten().nonzero().squeeze(1)
    if 2 * len(places) > coefficients.numel():
        difference.require_room(coefficients.numel(), base.shape[1])
        return Dense(change(x.base, difference.dense()), owned=True)
    difference.require_room(len(places), base.shape[1])
    places, rows = _changed_rows(difference, places, base, change)
    return replace(difference, coefficients=torch.zeros_like(coefficients), places=places, rows=rows)


def _rows_of(x: Operand) -> Num[Tensor, "m n"]:
    """The base value by rows, contiguous, once a step."""
    return x.value.remember("matrix rows", lambda: x.base.reshape(-1, x.base.shape[-1]).contiguous())


def _behind_kink(
    directions: Num[Tensor, " g #m n"], base: Num[Tensor, "m n"], negative_slope: float
) -> tuple[Num[Tensor, "g m n"], Num[Tensor, "2 g m"]]:
    """Directions behind a kink, where nothing changes its sign, and the extreme rates ``-u / z`` of each row.

    An entry changes its sign at the coefficients c with ``c (-u / z) >= 1``. A row with an entry at which z is 0, or
    anything is not a number, has infinite rates.
    """
    found = kernels.on(base).behind_kink(directions, base, negative_slope)
    if found is not None:
        return found
    rates = -directions / base
    bent = directions * torch.where(base >= 0, 1, negative_slope)
    odd = ~rates.isfinite().all(-1)
    highest, lowest = rates.amax(-1), rates.amin(-1)
    return bent, torch.stack([torch.where(odd, math.inf, highest), torch.where(odd, -math.inf, lowest)])


def _separated(
    coefficients: Num[Tensor, "p m"], groups: Int64[Tensor, " p"], rates: Num[Tensor, "2 g m"]
) -> tuple[Num[Tensor, "p m"], Int64[Tensor, " r"]]:
    """The coefficients of rows of which no entry changes its sign (0 for others), and the places of the others."""
    found = kernels.on(coefficients).rows_that_cross(coefficients, groups, rates)
    if found is not None:
        return found
    stays = (coefficients == 0) | (coefficients * rates[:, groups] < 1).all(0)
    return torch.where(stays, coefficients, 0), (~stays).flatten().nonzero().squeeze(1)


def _rectified_rows(
    difference: RankOne, places: Int64[Tensor, " r"], base: Num[Tensor, "m n"], negative_slope: float
) -> tuple[Int64[Tensor, " all"], Num[Tensor, "all n"]]:
    """:func:`_changed_rows` of a leaky relu, by a kernel where there is one."""
    coefficients = difference.coefficients.reshape(difference.count, len(base))
    given = None
    if difference.places is not None and difference.rows is not None:
        given = difference.places, difference.rows
    own = kernels.on(base)
    rows = own.rectified_rows(
        coefficients, difference.directions, difference.groups, places, base, given, negative_slope
    )
    if rows is None:
        return _changed_rows(difference, places, base, _change(negative_slope))
    return places if given is None else torch.cat([places, given[0]]), rows


def _change(negative_slope: float) -> Callable[..., Tensor]:
    return partial(leaky_relu, slope=negative_slope) if negative_slope else relu


def _changed_rows(
    difference: RankOne, places: Int64[Tensor, " r"], base: Num[Tensor, "m n"], change: Callable[..., Tensor]
) -> tuple[Int64[Tensor, " all"], Num[Tensor, "all n"]]:
    """``change`` of the rows at some places, written out, and of those that are given in full already."""
    samples = places % len(base)
    groups = difference.groups[torch.div(places, len(base), rounding_mode="floor")]
    single = difference.directions.shape[1] == 1
    rows = difference.directions[groups, 0 if single else samples]
    rows = rows * difference.coefficients.flatten()[places].unsqueeze(1)
    if difference.places is not None and difference.rows is not None:
        places, rows = torch.cat([places, difference.places]), torch.cat([rows, difference.rows])
    return places, change(base[places % len(base)], rows)
