"""A perceptron in one: a linear layer, an activation and a linear layer, where nothing else reads what is between.

This is half of a transformer. A device may have a kernel that takes a difference through all of it without writing out
the hidden ones; elsewhere, and where a weight differs, the rules of the parts follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Channel, Dense, LowRank
from deepzero.graph.rules.activation import KERNELS
from deepzero.graph.rules.base import RULES, difference_of, in_kind_for, rule
from deepzero.graph.rules.linear import linear


@rule(rank_one=True, low_rank=True)
def perceptron(
    call: Call,
    x: Operand,
    inner: Sequence[Operand | None],
    outer: Sequence[Operand | None],
    function: Any,
    options: Sequence[Any],
    named: Mapping[str, Any],
) -> Outcome:
    """``linear(f(linear(x, *inner)), *outer)``; ``call.values`` are the inner layer, the activation and the outer one.

    Args:
        call: the operations.
        x: argument of the inner layer.
        inner: its weight and its bias, if it has one.
        outer: those of the outer layer.
        function: the activation.
        options: its further arguments.
        named: likewise, by name.
    """
    hidden, behind, _ = call.values
    fixed = all(difference_of(a) is None for a in (*inner, *outer))
    kernel = KERNELS[function](*options, **named)
    if fixed and _by_rows(x):
        fast = _fused(hidden, x.difference, inner[0], outer[0], *kernel)
        if fast is not None:
            return fast
    change: Any = x.difference
    if any(difference_of(a) is not None for a in (x, *inner)):
        change = linear(Call(call.node, (hidden,)), x, *inner)
    if fixed and isinstance(change, LowRank):
        fast = _fused(hidden, change, None, outer[0], *kernel)
        if fast is not None:
            return fast
    if change is not None:
        rule_of_function = RULES[function]
        change = in_kind_for(rule_of_function, change)
        operand = Operand(hidden, change, expendable=isinstance(change, Dense) and change.owned)
        change = rule_of_function(Call(call.node, (behind,)), operand, *options, **named)
    return linear(call, Operand(behind, change), *outer)


def _by_rows(x: Operand) -> bool:
    """True if entries of the last dimension differ together: a kernel can multiply them by a matrix."""
    d = x.difference
    return isinstance(d, Dense) or (isinstance(d, Channel) and d.axis < len(d.shape) - 1)


def _fused(hidden: Value, d: Any, inner: Any, outer: Any, function: str, slope: float) -> Channel | Dense | None:
    """By a kernel of the device, if it has one."""
    matrix = None if inner is None else inner.base
    if outer.base.dim() != 2 or (matrix is not None and matrix.dim() != 2):
        return None
    return kernels.on(hidden.base).perceptron(function, slope, hidden, d, matrix, outer.base)
