"""The registry of difference rules, and the forms that most of them have: pointwise, linear, linear in each operand.

Legend: p perturbations; out: shape of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.graph.calls import Call, Operand, Outcome, Rule, Value
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, OneHot

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


BLOCKWISE: set[Rule] = set()
"""Rules that take :class:`~deepzero.graph.differences.Blocks`; all others are given what they hold in order."""


def blockwise(function: Rule) -> Rule:
    """Say of a rule that it takes blocks."""
    BLOCKWISE.add(function)
    return function


def plain(argument: Any) -> Any:
    """An argument whose difference, if it is in blocks, is in order."""
    if isinstance(argument, Operand) and isinstance(argument.difference, Blocks):
        return Operand(argument.value, Dense(argument.difference.dense()))
    return argument


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


def multilinear(function: Callable[..., Tensor], operands: Sequence[Operand]) -> Num[Tensor, " p *out"]:
    """``f(a + da, b + db, ...) - f(a, b, ...)`` for f linear in each argument.

    The sum over the arguments that differ of ``f(a + da, ..., dx, ..., z)``: those before have moved, those after have
    not. No term subtracts.
    """
    change: Tensor | None = None
    values = [o.base for o in operands]
    stacked: list[int | None] = [None] * len(operands)
    for position, operand in enumerate(operands):
        if operand.difference is None:
            continue
        delta = operand.difference.dense()
        dims = tuple(0 if i == position else axis for i, axis in enumerate(stacked))
        term = torch.func.vmap(function, in_dims=dims)(*values[:position], delta, *values[position + 1 :])
        change = term if change is None else change + term
        values[position], stacked[position] = operand.base + delta, 0
    assert change is not None, "no argument differs"
    return change


def linear_map(
    difference: Difference, function: Callable[[Tensor], Tensor], shape: torch.Size, kept: dict[int, int]
) -> Difference:
    """A linear function of one tensor, applied to its difference.

    Args:
        difference: of the argument.
        function: takes the argument's dimensions, all of one perturbation.
        shape: of the result.
        kept: the argument's dimensions whose entries the function treats alike and apart -> the result's dimension.
    """
    if isinstance(difference, Channel) and difference.axis in kept:
        axis = kept[difference.axis]
        out = torch.func.vmap(function)(difference.delta.unsqueeze(difference.axis + 1))
        return Channel(axis, difference.channels, out.squeeze(axis + 1), shape)
    return Dense(torch.func.vmap(function)(difference.dense()))


def linear_jointly(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """The rule of an operation that is linear in all of its tensors together: apply it to the differences themselves.

    Tensors without a difference count as zeros, also within lists.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda a: isinstance(a, Operand))
    operands = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Operand)}
    differing = {place: o.difference.dense() for place, o in operands.items() if o.difference is not None}

    def at(*deltas: Tensor) -> Any:
        here = {place: torch.zeros_like(o.base) for place, o in operands.items()} | dict(
            zip(differing, deltas, strict=True)
        )
        new_args, new_kwargs = pytree.tree_unflatten([here.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
        return call.node.target(*new_args, **new_kwargs)

    out = torch.func.vmap(at)(*differing.values())
    return tuple(Dense(o) for o in out) if isinstance(out, (tuple, list)) else Dense(out)


def operand_of(difference: Difference) -> Operand:
    """An operand whose base value does not matter: for rules that are linear in it."""
    return Operand(Value(torch.zeros(())), difference)


def normal_dim(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim + ndim if dim < 0 else dim
