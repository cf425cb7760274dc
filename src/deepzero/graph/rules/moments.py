"""Variances, deviations and norms: sums of squares, whose changes are sums of ``d (2 z + d)``.

Legend: stacked: a base value and its differences, with a dimension of perturbations in front of the latter, which
broadcast; kept: the same with length 1 along what is reduced.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Difference
from deepzero.graph.rules import formulas
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.choices import extreme_change
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.reduction import along, reduced_dims, summed

aten = torch.ops.aten
Stacked = Num[Tensor, "*#stacked"]
Kept = Num[Tensor, "*kept"]


@rule(aten.var.correction, aten.var.dim, aten.var.default)
def var(call: Call, x: Operand, *options: Any, **named: Any) -> Outcome:
    """With centred values c and the fluctuation f of d: ``sum f (2 c + f) / (n - correction)``."""
    dims, correction, keepdim = _options(x, *options, **named)
    return along(x, dims, keepdim, lambda z, d, where: _variance_change(z, d, where, correction))


@rule(aten.std.correction, aten.std.dim, aten.std.default)
def std(call: Call, x: Operand, *options: Any, **named: Any) -> Outcome:
    """The change of the variance over the sum of both deviations."""
    dims, correction, keepdim = _options(x, *options, **named)
    return along(x, dims, keepdim, lambda z, d, where: _deviation_change(z, d, where, correction))


@rule(aten.var_mean.correction, aten.var_mean.dim, aten.var_mean.default)
def var_mean(call: Call, x: Operand, *options: Any, **named: Any) -> Outcome:
    """Variance and mean."""
    dims, _, keepdim = _options(x, *options, **named)
    return _as_one(var(call, x, *options, **named)), along(x, dims, keepdim, _mean_change)


@rule(aten.std_mean.correction, aten.std_mean.dim, aten.std_mean.default)
def std_mean(call: Call, x: Operand, *options: Any, **named: Any) -> Outcome:
    """Deviation and mean."""
    dims, _, keepdim = _options(x, *options, **named)
    return _as_one(std(call, x, *options, **named)), along(x, dims, keepdim, _mean_change)


def _as_one(outcome: Outcome) -> Difference | None:
    assert not isinstance(outcome, tuple)
    return outcome


def _options(
    x: Operand,
    *options: Any,
    correction: float | None = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    dim: Any = None,
) -> tuple[list[int], float, bool]:
    """The reduced dimensions, the correction, and ``keepdim``, in every form of the call."""
    listed: list[Any] = list(options)
    if listed and isinstance(listed[0], bool):
        unbiased = listed.pop(0)
    named = [dim, unbiased, keepdim]
    dim, unbiased, keepdim = listed + named[len(listed) :]
    removed = 1 if correction is None else correction
    return reduced_dims(dim, x.base.dim()), removed if unbiased is None else int(unbiased), keepdim


def _mean_change(z: Stacked, d: Stacked, dims: list[int]) -> Kept:
    return d.mean(dims, keepdim=True) if dims else d


def _variance_change(z: Stacked, d: Stacked, dims: list[int], correction: float) -> Kept:
    centred, fluctuation = z - _mean_change(z, z, dims), d - _mean_change(d, d, dims)
    size = math.prod(z.shape[dim] for dim in dims)
    squares = (
        (fluctuation.conj() * (2 * centred + fluctuation)).real
        if z.is_complex()
        else fluctuation * (2 * centred + fluctuation)
    )
    return summed(squares, dims) / max(0, size - correction)


def _deviation_change(z: Stacked, d: Stacked, dims: list[int], correction: float) -> Kept:
    change = _variance_change(z, d, dims, correction)
    before, after = (torch.std(v, dims, correction=correction, keepdim=True) for v in (z, z + d))
    return formulas.quotient(change, before + after)


@rule(aten.linalg_vector_norm.default)
def vector_norm(
    call: Call, x: Operand, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Outcome:
    """``(sum |z|^p)^(1/p)``, and its limits: the largest and the smallest absolute value for orders inf and -inf."""
    if order == 0:
        return fallback(call, x, order, dim, keepdim, dtype=dtype)
    dims = reduced_dims(dim, x.base.dim())
    return along(x, dims, keepdim, lambda z, d, where: _norm_change(z, d, where, order))


@rule(aten.linalg_norm.default)
def linalg_norm(
    call: Call, x: Operand, order: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Outcome:
    """Norms of vectors, and of all entries (Frobenius); other norms of matrices take the fallback."""
    dims = reduced_dims(dim, x.base.dim())
    if order is None or (len(dims) == 1 and isinstance(order, (int, float))):
        return vector_norm(call, x, 2 if order is None else order, dims, keepdim, dtype=dtype)
    return fallback(call, x, order, dim, keepdim, dtype=dtype)


def _norm_change(z: Stacked, d: Stacked, dims: list[int], order: float) -> Kept:
    if not dims:
        return formulas.absolute(z, d)
    if order == 2:
        change = (d.conj() * (2 * z + d)).real if z.is_complex() else formulas.square(z, d)
        before, after = (torch.linalg.vector_norm(v, 2, dims, keepdim=True) for v in (z, z + d))
        return formulas.quotient(summed(change, dims), before + after)
    size, change = z.abs(), formulas.absolute(z, d)
    if math.isinf(order):
        extreme = torch.amax if order > 0 else torch.amin
        return extreme_change(size, change, dims, extreme)
    if order == 1:
        return summed(change, dims)
    powers = summed(formulas.power(size, change, order), dims)
    return formulas.power(summed(size**order, dims), powers, 1 / order)
