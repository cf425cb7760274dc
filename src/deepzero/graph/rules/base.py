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
from deepzero.graph.differences import (
    Blocks,
    Channel,
    Dense,
    Difference,
    LowRank,
    OneHot,
    Pending,
    RankOne,
    Segment,
)
from deepzero.graph.rules.rank_one import in_full

RULES: dict[Any, Rule] = {}
"""ATen overload -> its rule. A rule gives ``f(z + d) - f(z)`` from base values and incoming differences."""

TAKES_RANK_ONE: set[Rule] = set()
"""Rules that take a :class:`~deepzero.graph.differences.RankOne`; all others are given it as a dense difference."""


TAKES_BLOCKS: set[Rule] = set()
"""Rules that take :class:`~deepzero.graph.differences.Blocks`; all others are given it as a dense difference."""

TAKES_PENDING: set[Rule] = set()
"""Rules that take blocks which are not computed yet; others that take blocks are given them computed."""

TAKES_LOW_RANK: set[Rule] = set()
"""Rules that take a :class:`~deepzero.graph.differences.LowRank` or a segment; others are given it as a dense one."""


def rule(
    *targets: Any, rank_one: bool = False, low_rank: bool = False, blocks: bool = False, pending: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for some ATen overloads.

    A rule is called as ``rule(call, *args, **kwargs)`` with the arguments of the operation, where every tensor is an
    :class:`~deepzero.graph.calls.Operand`; at least one of them differs. With ``rank_one`` it takes rank-one
    differences, too, with ``low_rank`` those of low rank and segments, with ``blocks`` blocks, and
    with ``pending`` also those that are not computed yet.
    """

    def register(function: Rule) -> Rule:
        if rank_one:
            TAKES_RANK_ONE.add(function)
        if low_rank:
            TAKES_LOW_RANK.add(function)
        if blocks:
            TAKES_BLOCKS.add(function)
        if pending:
            TAKES_PENDING.add(function)
        for target in targets:
            RULES[target] = function
        return function

    return register


def in_kind_for(rule: Rule | None, difference: Difference | Blocks) -> Difference | Blocks:
    """The difference, written out if it is of a kind that the rule does not take."""
    if isinstance(difference, RankOne) and rule not in TAKES_RANK_ONE:
        return Dense(difference.dense(), owned=True)
    if isinstance(difference, (Segment, LowRank)) and rule not in TAKES_LOW_RANK:
        return Dense(difference.dense(), owned=True)
    if isinstance(difference, Blocks) and rule not in TAKES_BLOCKS:
        return Dense(difference.dense(), owned=True)
    if isinstance(difference, Pending) and rule not in TAKES_PENDING:
        return difference.settled()
    return difference


def in_order(operand: Operand) -> Operand:
    """The operand with its difference as a dense one, if it is in blocks."""
    difference: Any = operand.difference
    if not isinstance(difference, Blocks):
        return operand
    return Operand(operand.value, Dense(difference.dense()))


def difference_of(argument: Any) -> Difference | None:
    """The difference of an argument, if it is a tensor that differs."""
    return argument.difference if isinstance(argument, Operand) else None


def base_of(argument: Any) -> Any:
    """The base value of an argument; anything but a tensor is its own."""
    return argument.base if isinstance(argument, Operand) else argument


def apply_pointwise(operand: Operand, function: Callable[[Tensor, Tensor], Tensor]) -> Difference:
    """``function(z, delta)`` on the entries that differ; the kind of the difference is kept where it can."""
    difference = operand.difference
    if isinstance(difference, RankOne):
        return in_full(operand, function)
    if isinstance(difference, OneHot):
        base = operand.base.reshape(-1)[difference.indices]
        return OneHot(difference.indices, function(base, difference.values), difference.shape)
    if isinstance(difference, Channel):
        return difference.with_delta(function(difference.of(operand.base), difference.delta))
    assert difference is not None
    return Dense(function(operand.base, difference.dense()))


def map_delta(difference: Difference, function: Callable[[Tensor], Tensor]) -> Difference:
    """A linear pointwise function of a difference."""
    if isinstance(difference, (RankOne, LowRank, Segment)):
        return difference.map(function)
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
