"""Largest and smallest values.

With M the extreme value, it changes by the extreme value of ``(z - M) + d``: the winner's own term is its difference
exactly, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Dense, Difference
from deepzero.graph.rules.base import normal_dim, rule
from deepzero.graph.rules.dimensions import along, reduced_dims
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.formulas import gap

aten = torch.ops.aten
Extreme = Callable[..., Tensor]


def extreme_change(z: Tensor, d: Tensor, dims: list[int], extreme: Extreme) -> Tensor:
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
