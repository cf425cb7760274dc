"""The registry of difference rules and the helpers that rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome, Rule, Value
from deepzero.graph.differences import Channel, Dense, Difference, OneHot

RULES: dict[Any, Rule] = {}
"""ATen overload -> its rule. A rule gives ``f(z + d) - f(z)`` from base values and incoming differences."""


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some ATen overloads.

    A rule is called as ``rule(call, *args, **kwargs)`` with the arguments of the operation, where every tensor is an
    :class:`~deepzero.graph.calls.Operand`; at least one of them differs.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def difference_of(argument: Any) -> Difference | None:
    """The difference of an argument, if it is a tensor that differs."""
    return argument.difference if isinstance(argument, Operand) else None


def base_of(argument: Any) -> Any:
    """The base value of an argument; anything but a tensor is its own."""
    return argument.base if isinstance(argument, Operand) else argument


def apply_pointwise(operand: Operand, function: Callable[[Tensor, Tensor], Tensor]) -> Difference:
    """``function(z, delta)`` on the entries that differ; the kind of the difference is kept."""
    difference = operand.difference
    if isinstance(difference, OneHot):
        base = operand.base.reshape(-1)[difference.indices]
        return OneHot(difference.indices, function(base, difference.values), difference.shape)
    if isinstance(difference, Channel):
        return difference.with_delta(function(difference.of(operand.base), difference.delta))
    assert difference is not None
    return Dense(function(operand.base, difference.delta))


def map_delta(difference: Difference, function: Callable[[Tensor], Tensor]) -> Difference:
    """A linear pointwise function of a difference."""
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, function(difference.values), difference.shape)
    if isinstance(difference, Channel):
        return difference.with_delta(function(difference.delta))
    return Dense(function(difference.delta))


def linear_in_each(call: Call, args: Iterable[Any], kwargs: dict[str, Any]) -> Outcome:
    """The rule of an operation that is linear in its tensor arguments jointly: apply it to the differences themselves.

    Arguments without a difference count as zeros.
    """
    operands = [a for a in args if isinstance(a, Operand)]
    count = next(o.difference.count for o in operands if o.difference is not None)

    def at(*deltas: Tensor) -> Any:
        remaining = iter(deltas)
        return call.node.target(*(next(remaining) if isinstance(a, Operand) else a for a in args), **kwargs)

    deltas = [
        o.difference.dense() if o.difference is not None else torch.zeros_like(o.base).expand(count, *o.base.shape)
        for o in operands
    ]
    out = torch.func.vmap(at)(*deltas)
    return tuple(Dense(o) for o in out) if isinstance(out, (tuple, list)) else Dense(out)


def operand_of(difference: Difference) -> Operand:
    """An operand whose base value does not matter: for rules that are linear in it."""
    return Operand(Value(torch.zeros(())), difference)


def normal_dim(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim + ndim if dim < 0 else dim
