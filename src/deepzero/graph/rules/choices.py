"""Choices between values: by a condition, by bounds, by size; of several tensors, or along dimensions of one.

A maximum M of a and b changes by ``max((a - M) + da, (b - M) + db)``: the winner's own term is its difference exactly,
so nothing cancels. So does the largest of many.

Legend: entries: those of the output that differ, in whatever shape; stacked: a base value and its differences, with a
dimension of perturbations in front of the latter, which broadcast; kept: with length 1 along what is reduced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Dense, Difference
from deepzero.graph.rules.base import normal_dim, rule
from deepzero.graph.rules.fallback import evaluated, fallback
from deepzero.graph.rules.formulas import gap
from deepzero.graph.rules.frames import Moving, jointly
from deepzero.graph.rules.pointwise import in_field
from deepzero.graph.rules.reduction import along, reduced_dims

aten = torch.ops.aten


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(call: Call, condition: Operand, a: Any, b: Any) -> Outcome:
    """The difference of what is chosen; where the choice itself changes, the way from one value to the other."""
    base = call.output.base
    return in_field(jointly(base.shape, (condition, a, b), partial(_chosen, base.dtype)), base.dtype)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(call: Call, x: Operand, mask: Operand, value: Any) -> Outcome:
    """As :func:`where`: the value under the mask, x elsewhere."""
    return where(call, mask, value, x)


def _chosen(dtype: torch.dtype, condition: Moving, a: Moving, b: Moving) -> Num[Tensor, "*entries"]:
    da, db = (0 if m.delta is None else m.delta for m in (a, b))
    if condition.delta is None:
        return _where(condition.base, da, db)
    before, after = condition.base, condition.moved
    step = gap(_in_dtype(a.base, dtype), _in_dtype(b.base, dtype))
    return torch.where(before, _where(after, da, db - step), _where(after, da + step, db))


def _where(condition: Bool[Tensor, "*#entries"], a: Any, b: Any) -> Num[Tensor, "*#entries"]:
    return torch.where(condition, a, b)


@rule(aten.maximum.default, aten.max.other)
def maximum(call: Call, a: Operand, b: Operand) -> Outcome:
    """``max((a - M) + da, (b - M) + db)``."""
    return _extreme(call, a, b, torch.maximum)


@rule(aten.minimum.default, aten.min.other)
def minimum(call: Call, a: Operand, b: Operand) -> Outcome:
    """``min((a - M) + da, (b - M) + db)``."""
    return _extreme(call, a, b, torch.minimum)


def _extreme(call: Call, a: Any, b: Any, choose: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
    if call.output.base.dtype == torch.bool:
        return evaluated(call, a, b)
    return jointly(call.output.base.shape, (a, b), lambda x, y: _winner(x, y, choose).delta)


def _winner(a: Moving, b: Moving, choose: Callable[[Tensor, Tensor], Tensor]) -> Moving:
    """The larger or smaller of two moving values, itself a moving value."""
    best = choose(a.base, b.base)
    if a.delta is None and b.delta is None:
        return Moving(best, None)
    distances = [gap(m.base, best) if m.delta is None else gap(m.base, best) + m.delta for m in (a, b)]
    return Moving(best, choose(*distances))


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor)
def clamp(call: Call, x: Operand, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Outcome:  # noqa: A002
    """``min(max(x, low), high)``; the bounds may be numbers or tensors, and tensors may differ too."""
    low, high = (low if min is None else min), (high if max is None else max)
    dtype = call.output.base.dtype
    bounds = [(bound, choose) for bound, choose in ((low, torch.maximum), (high, torch.minimum)) if bound is not None]

    def change(x: Moving, *limits: Moving) -> Tensor:
        best = _as_tensors(x, dtype)
        for limit, (_, choose) in zip(limits, bounds, strict=True):
            best = _winner(best, _as_tensors(limit, dtype), choose)
        delta: Tensor = best.delta
        return delta

    return jointly(call.output.base.shape, (x, *(bound for bound, _ in bounds)), change)


def _as_tensors(m: Moving, dtype: torch.dtype) -> Moving:
    return Moving(_in_dtype(m.base, dtype), m.delta)


def _in_dtype(value: Any, dtype: torch.dtype) -> Shaped[Tensor, "*value"]:
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


@rule(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(call: Call, x: Operand, low: Any) -> Outcome:
    """``max(x, low)``."""
    return clamp(call, x, low, None)


@rule(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(call: Call, x: Operand, high: Any) -> Outcome:
    """``min(x, high)``."""
    return clamp(call, x, None, high)


# Along dimensions -----------------------------------------------------------------------------------------------------

Extreme = Callable[..., Tensor]
"""One of amax and amin."""


def extreme_change(
    z: Num[Tensor, "*#stacked"], d: Num[Tensor, "*#stacked"], dims: list[int], extreme: Extreme
) -> Num[Tensor, "*kept"]:
    """Change of ``extreme(z)``, one of amax and amin, along ``dims``, which are kept."""
    return extreme(gap(z, extreme(z, dims, keepdim=True)) + d, dims, keepdim=True) if dims else d


def _values(x: Operand, dim: Any, keepdim: bool, extreme: Extreme) -> Difference:
    dims = reduced_dims(dim, x.base.dim())
    return along(x, dims, keepdim, lambda z, d, where: extreme_change(z, d, where, extreme))


@rule(aten.amax.default)
def amax(call: Call, x: Operand, dim: Any = (), keepdim: bool = False) -> Outcome:
    """The largest value along dimensions."""
    return fallback(call, x, dim, keepdim) if _is_bool(x) else _values(x, dim, keepdim, torch.amax)


@rule(aten.amin.default)
def amin(call: Call, x: Operand, dim: Any = (), keepdim: bool = False) -> Outcome:
    """The smallest value along dimensions."""
    return fallback(call, x, dim, keepdim) if _is_bool(x) else _values(x, dim, keepdim, torch.amin)


@rule(aten.aminmax.default)
def aminmax(call: Call, x: Operand, *, dim: int | None = None, keepdim: bool = False) -> Outcome:
    """The smallest and the largest value."""
    if _is_bool(x):
        return fallback(call, x, dim=dim, keepdim=keepdim)
    return _values(x, dim, keepdim, torch.amin), _values(x, dim, keepdim, torch.amax)


@rule(aten.max.default)
def max_all(call: Call, x: Operand) -> Outcome:
    """The largest value of all."""
    return fallback(call, x) if _is_bool(x) else _values(x, None, False, torch.amax)


@rule(aten.min.default)
def min_all(call: Call, x: Operand) -> Outcome:
    """The smallest value of all."""
    return fallback(call, x) if _is_bool(x) else _values(x, None, False, torch.amin)


def _is_bool(x: Operand) -> bool:
    return x.base.dtype == torch.bool


@rule(aten.max.dim)
def max_dim(call: Call, x: Operand, dim: int, keepdim: bool = False) -> Outcome:
    """The largest value along a dimension, and its index."""
    return _with_index(call, x, dim, keepdim, torch.max)


@rule(aten.min.dim)
def min_dim(call: Call, x: Operand, dim: int, keepdim: bool = False) -> Outcome:
    """The smallest value along a dimension, and its index."""
    return _with_index(call, x, dim, keepdim, torch.min)


def _with_index(call: Call, x: Operand, dim: int, keepdim: bool, extreme: Callable[..., Any]) -> Outcome:
    if _is_bool(x) or x.base.dim() == 0:
        return fallback(call, x, dim, keepdim)
    best, index = call.output.base
    assert x.difference is not None
    axis = normal_dim(dim, x.base.dim())
    distance = gap(x.base, best if keepdim else best.unsqueeze(axis))
    change, moved = extreme(distance + x.difference.dense(), axis + 1, keepdim=keepdim)
    return Dense(change), Dense(moved - index)
