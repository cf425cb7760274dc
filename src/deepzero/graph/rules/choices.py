"""Choices between values: by a condition, by size, by bounds.

A maximum M of a and b changes by ``max((a - M) + da, (b - M) + db)``: the winner's own term is its difference exactly,
so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.fallback import evaluated
from deepzero.graph.rules.formulas import gap
from deepzero.graph.rules.frames import Moving, jointly
from deepzero.graph.rules.pointwise import in_field

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


def _chosen(dtype: torch.dtype, condition: Moving, a: Moving, b: Moving) -> Tensor:
    da, db = (0 if m.delta is None else m.delta for m in (a, b))
    if condition.delta is None:
        return _where(condition.base, da, db)
    before, after = condition.base, condition.moved
    step = gap(_in_dtype(a.base, dtype), _in_dtype(b.base, dtype))
    return torch.where(before, _where(after, da, db - step), _where(after, da + step, db))


def _where(condition: Tensor, a: Any, b: Any) -> Tensor:
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


def _in_dtype(value: Any, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


@rule(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(call: Call, x: Operand, low: Any) -> Outcome:
    """``max(x, low)``."""
    return clamp(call, x, low, None)


@rule(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(call: Call, x: Operand, high: Any) -> Outcome:
    """``min(x, high)``."""
    return clamp(call, x, None, high)
