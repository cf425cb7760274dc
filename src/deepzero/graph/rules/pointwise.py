"""Sums and products of tensors, with broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, add
from deepzero.graph.rules.base import apply_pointwise, base_of, difference_of, map_delta, rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten


def broadcast(difference: Difference, shape: torch.Size) -> Difference:
    """The difference of a value that is broadcast to ``shape``; a channel stays a channel where it can."""
    if difference.shape == shape:
        return difference
    lead = len(shape) - len(difference.shape)
    if isinstance(difference, OneHot):
        difference = _onehot_as_channel(difference)
    if isinstance(difference, Channel) and shape[difference.axis + lead] == difference.shape[difference.axis]:
        axis = difference.axis + lead
        delta = difference.delta.reshape(difference.count, *(1 for _ in range(lead)), *difference.delta.shape[1:])
        rest = torch.Size(s for d, s in enumerate(shape) if d != axis)
        return Channel(axis, difference.channels, delta.expand(difference.count, *rest), shape)
    delta = difference.dense()
    delta = delta.reshape(difference.count, *(1 for _ in range(lead)), *difference.shape)
    return Dense(delta.expand(difference.count, *shape))


def _onehot_as_channel(difference: OneHot) -> Difference:
    """A one-hot difference of a value with a single dimension longer than 1 is a channel of one entry."""
    long = [d for d, size in enumerate(difference.shape) if size > 1]
    if len(long) > 1 or not difference.shape:
        return difference
    axis = long[0] if long else len(difference.shape) - 1
    rest = tuple(s for d, s in enumerate(difference.shape) if d != axis)
    delta = difference.values.reshape(-1, *(1 for _ in rest)).expand(-1, *rest)
    return Channel(axis, difference.indices, delta, difference.shape)


def scaled_by(difference: Difference, factor: Any, shape: torch.Size) -> Difference:
    """``difference * factor`` for a base tensor (or number) that broadcasts to ``shape``."""
    difference = broadcast(difference, shape)
    if not isinstance(factor, Tensor) or factor.dim() == 0:
        return map_delta(difference, lambda d: d * factor)
    factor = factor.expand(shape)
    if isinstance(difference, OneHot):
        values = difference.values * factor.reshape(-1)[difference.indices]
        return OneHot(difference.indices, values, shape)
    if isinstance(difference, Channel):
        return difference.with_delta(difference.delta * difference.of(factor))
    return Dense(difference.delta * factor)


def total(parts: list[Difference | None]) -> Difference | None:
    """Sum of differences of one node; one-hots are made comparable first."""
    present = [p for p in parts if p is not None]
    if not present:
        return None
    result: Difference = present[0]
    for part in present[1:]:
        result = add(result, part)  # type: ignore[assignment]
    return result


@rule(aten.add.Tensor, aten.add.Scalar)
def add_rule(call: Call, a: Any, b: Any, *, alpha: float = 1) -> Outcome:
    """``da + alpha db``; a sum of booleans is a logical or."""
    if call.output.base.dtype == torch.bool:
        return fallback(call, a, b, alpha=alpha)
    return _signed_sum(call, a, b, 1, alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub_rule(call: Call, a: Any, b: Any, *, alpha: float = 1) -> Outcome:
    """``da - alpha db``."""
    return _signed_sum(call, a, b, 1, -alpha)


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub_rule(call: Call, a: Any, b: Any, alpha: float = 1) -> Outcome:
    """``db - alpha da``."""
    return _signed_sum(call, a, b, -alpha, 1)


def _signed_sum(call: Call, a: Any, b: Any, left: float, right: float) -> Difference | None:
    shape = call.output.base.shape
    parts = []
    for argument, sign in ((a, left), (b, right)):
        difference = difference_of(argument)
        if difference is not None:
            parts.append(_scaled(broadcast(difference, shape), sign))
    return total(list(parts))


def _scaled(difference: Difference, factor: float) -> Difference:
    return difference if factor == 1 else map_delta(difference, lambda d: d * factor)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def mul_rule(call: Call, a: Any, b: Any) -> Outcome:
    """``da b + a db + da db``."""
    return _product(call.output.base.shape, a, b)


def _product(shape: torch.Size, a: Any, b: Any) -> Difference | None:
    da, db = difference_of(a), difference_of(b)
    parts = []
    if da is not None:
        parts.append(scaled_by(da, base_of(b), shape))
    if db is not None:
        parts.append(scaled_by(db, base_of(a), shape))
    if da is not None and db is not None:
        parts.append(Dense(broadcast(da, shape).dense() * broadcast(db, shape).dense()))
    return total(list(parts))


@rule(aten.div.Tensor, aten.div.Scalar)
def div_rule(call: Call, a: Any, b: Any) -> Outcome:
    """``(da - (a/b) db) / (b + db)``."""
    shape = call.output.base.shape
    da, db = difference_of(a), difference_of(b)
    divisor = base_of(b)
    if db is None:
        assert da is not None
        return scaled_by(da, 1 / divisor, shape)
    numerator = -scaled_by(db, call.output.base, shape).dense()
    if da is not None:
        numerator = numerator + broadcast(da, shape).dense()
    return Dense(numerator / (divisor + broadcast(db, shape).dense()))


@rule(aten.neg.default)
def neg_rule(call: Call, x: Operand) -> Outcome:
    """``-d``."""
    assert x.difference is not None
    return map_delta(x.difference, torch.neg)


@rule(aten.pow.Tensor_Scalar)
def pow_rule(call: Call, x: Operand, exponent: float) -> Outcome:
    """``d (2 z + d)`` for squares; other exponents by the fallback."""
    if exponent == 2:
        return apply_pointwise(x, lambda z, d: d * (2 * z + d))
    return fallback(call, x, exponent)


@rule(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default
)
def identity_rule(call: Call, x: Operand, **_: Any) -> Outcome:
    """The difference itself."""
    return x.difference


@rule(aten._to_copy.default, aten.to.dtype)
def cast_rule(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
    """A change of floating-point dtype changes the difference's; any other cast is evaluated."""
    dtype = call.output.base.dtype
    if dtype.is_floating_point and x.base.is_floating_point():
        assert x.difference is not None
        return map_delta(x.difference, lambda d: d.to(dtype))
    return fallback(call, x, *args, **kwargs)
