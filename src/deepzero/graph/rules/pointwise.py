"""Sums, products and powers of tensors, with broadcasting; casts; and pointwise operations without a closed form.

Legend: entries: those of the output that differ, in whatever shape; a, b, x: operands there; da, db, dx: differences.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64, Num
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Dense, Difference, LowRank, RankOne, add, difference_dtype
from deepzero.graph.rules import formulas
from deepzero.graph.rules.base import apply_pointwise, base_of, difference_of, map_delta, operand_of, rule
from deepzero.graph.rules.fallback import evaluated, widened
from deepzero.graph.rules.frames import Moving, broadcast, jointly

__all__ = ["broadcast", "in_field", "product_change", "quotient_change", "scaled_by", "total", "weighted"]
aten = torch.ops.aten


def scaled_by(difference: Difference, factor: Any, shape: torch.Size) -> Difference:
    """``difference * factor`` for a base tensor (or number) that broadcasts to ``shape``."""
    other = Operand(Value(factor), None) if isinstance(factor, Tensor) else factor
    return jointly(shape, (operand_of(difference), other), lambda d, f: d.delta * f.base)


def total(parts: list[Difference | None]) -> Difference | None:
    """Sum of differences of one node."""
    result: Difference | None = None
    for part in parts:
        result = add(result, part)
    return result


def product_change(
    a: Moving, b: Moving, multiply: Callable[[Any, Any], Tensor] = operator.mul
) -> Num[Tensor, "*entries"]:
    """``(a + da)(b + db) - a b = da b + (a + da) db`` for any product ``multiply``; one of both differs."""
    if a.delta is None:
        return multiply(a.base, b.delta)
    first = multiply(a.delta, b.base)
    return first if b.delta is None else first + multiply(a.moved, b.delta)


def weighted(*terms: tuple[Moving, Any]) -> Any:
    """``sum_i weight_i d_i`` over those that differ; 0 if none does."""
    return sum(term.delta if _is_one(w) else term.delta * w for term, w in terms if term.delta is not None)


def _is_one(weight: Any) -> bool:
    return not isinstance(weight, Tensor) and weight == 1


@rule(aten.add.Tensor, aten.add.Scalar, rank_one=True, low_rank=True)
def add_rule(call: Call, a: Any, b: Any, alpha: float = 1) -> Outcome:
    """``da + alpha db``; a sum of booleans is a logical or."""
    if call.output.base.dtype == torch.bool:
        return evaluated(call, a, b)
    return _signed_sum(call, a, b, 1, alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar, rank_one=True, low_rank=True)
def sub_rule(call: Call, a: Any, b: Any, alpha: float = 1) -> Outcome:
    """``da - alpha db``."""
    return _signed_sum(call, a, b, 1, -alpha)


@rule(aten.rsub.Tensor, aten.rsub.Scalar, rank_one=True, low_rank=True)
def rsub_rule(call: Call, a: Any, b: Any, alpha: float = 1) -> Outcome:
    """``db - alpha da``."""
    return _signed_sum(call, a, b, -alpha, 1)


def _signed_sum(call: Call, a: Any, b: Any, of_a: float, of_b: float) -> Difference | None:
    """``of_a da + of_b db``."""
    base = call.output.base
    first, second = (_term(argument, sign, base.shape) for argument, sign in ((a, of_a), (b, of_b)))
    spare = (_may_end_in(a, first, base.dtype), _may_end_in(b, second, base.dtype))
    return in_field(add(first, second, spare), base.dtype)


def _term(argument: Any, factor: float, shape: torch.Size) -> Difference | None:
    """``factor d``, broadcast to a shape."""
    difference = difference_of(argument)
    if difference is None:
        return None
    difference = broadcast(difference, shape)
    return difference if factor == 1 else map_delta(difference, lambda d: d * factor)


def _may_end_in(argument: Any, part: Difference | None, dtype: torch.dtype) -> bool:
    """True if a sum of that dtype may take the memory of an argument's difference, which is a term of it as it is."""
    if not isinstance(part, Dense) or difference_of(argument) is not part:
        return False
    once = all(stride or size == 1 for stride, size in zip(part.delta.stride(), part.delta.shape, strict=True))
    return once and bool(argument.expendable) and part.delta.dtype == difference_dtype(dtype)


def in_field(difference: Difference | None, dtype: torch.dtype) -> Difference | None:
    """A real difference of a complex value as a complex one."""
    if difference is None or not dtype.is_complex:
        return difference
    return map_delta(difference, lambda d: d if d.is_complex() else d.to(torch.promote_types(d.dtype, torch.complex64)))


@rule(aten.mul.Tensor, aten.mul.Scalar, rank_one=True, low_rank=True)
def mul_rule(call: Call, a: Any, b: Any) -> Outcome:
    """``da b + (a + da) db``."""
    for difference, number in ((difference_of(a), b), (difference_of(b), a)):
        if isinstance(difference, (RankOne, LowRank)) and isinstance(number, float | int):
            return map_delta(difference, partial(operator.mul, number))
    return in_field(jointly(call.output.base.shape, (a, b), product_change), call.output.base.dtype)


@rule(aten.div.Tensor, aten.div.Scalar)
def div_rule(call: Call, a: Any, b: Any) -> Outcome:
    """``(da - (a/b) db) / (b + db)``."""
    if difference_of(b) is None:
        change = jointly(call.output.base.shape, (a, b), lambda a, b: a.delta / b.base)
    else:
        change = jointly(call.output.base.shape, (a, b, Operand(call.output, None)), quotient_change)
    return in_field(change, call.output.base.dtype)


def quotient_change(a: Moving, b: Moving, ratio: Moving) -> Num[Tensor, "*entries"]:
    """Change of a ratio ``a / b``, given its base value."""
    return weighted((a, 1), (b, -ratio.base)) / b.moved  # type: ignore[no-any-return]


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode_rule(call: Call, a: Any, b: Any, *, rounding_mode: str | None = None) -> Outcome:
    """A division that may round its result."""
    return div_rule(call, a, b) if rounding_mode is None else evaluated(call, a, b, rounding_mode=rounding_mode)


@rule(aten.neg.default, rank_one=True, low_rank=True)
def neg_rule(call: Call, x: Operand) -> Outcome:
    """``-d``."""
    assert x.difference is not None
    return map_delta(x.difference, torch.neg)


POWERS = {
    0.5: formulas.sqrt,
    -0.5: formulas.rsqrt,
    -1: formulas.reciprocal,
    1: lambda _, d: d,
    2: formulas.square,
    3: formulas.cube,
}
"""Exponent -> change of the power, in a form that holds for values of either sign."""


@rule(aten.pow.Tensor_Scalar)
def pow_rule(call: Call, x: Operand, exponent: float) -> Outcome:
    """``z^e`` for a number e: a formula of its own for frequent exponents, ``z^e expm1(e log1p(d/z))`` for others."""
    if x.base.is_complex() and exponent in (1, 2, 3, -1):
        return apply_pointwise(x, POWERS[exponent])
    if not x.base.is_floating_point() or isinstance(exponent, complex):
        return evaluated(call, x, exponent)
    if exponent in POWERS:
        return apply_pointwise(x, POWERS[exponent])
    return apply_pointwise(x, lambda z, d: formulas.power(z, d, exponent))


@rule(aten.pow.Scalar, aten.pow.Tensor_Tensor)
def power_of_tensors(call: Call, a: Any, b: Any) -> Outcome:
    """``a^b expm1(b' log1p(da/a) + db log a)`` with ``b' = b + db``, for real positive a; evaluated elsewhere."""
    if not all(base.is_floating_point() for base in map(base_of, (a, b)) if isinstance(base, Tensor)):
        return evaluated(call, a, b)
    return jointly(call.output.base.shape, (a, b, Operand(call.output, None)), _power_change)


def _power_change(a: Moving, b: Moving, power: Moving) -> Num[Tensor, "*entries"]:
    like = power.base
    base = a.base if isinstance(a.base, Tensor) else torch.as_tensor(a.base, dtype=like.dtype, device=like.device)
    growth = 0 if a.delta is None else b.moved * formulas.log(base, a.delta)
    if b.delta is not None:
        growth = growth + b.delta * torch.log(base)
    assert isinstance(growth, Tensor)
    closed = (base > 0) & (growth.abs() < 1)
    small: Tensor = power.base * torch.expm1(growth)
    if bool(closed.all()):
        return small
    wide = [m if not isinstance(m.base, Tensor) else Moving(m.base.double(), m.delta) for m in (a, b)]
    after, before = (torch.pow(*at) for at in ([m.moved for m in wide], [m.base for m in wide]))
    plain = formulas.gap(after, before)
    return torch.where(closed, small, plain.to(small.dtype))


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(call: Call, a: Operand, b: Operand, weight: Any) -> Outcome:
    """Of ``a + w (b - a)``: ``(1 - w) da + w db + dw (b' - a')``."""

    def change(a: Moving, b: Moving, w: Moving) -> Tensor:
        moved = weighted((a, 1 - w.base), (b, w.base))
        if w.delta is not None:
            moved = moved + w.delta * ((b.base - a.base) + weighted((b, 1), (a, -1)))
        return moved  # type: ignore[no-any-return]

    return in_field(jointly(call.output.base.shape, (a, b, weight), change), call.output.base.dtype)


@rule(aten.addcmul.default)
def addcmul(call: Call, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Outcome:
    """Of ``x + value a b``: ``dx + value (da b + (a + da) db)``."""

    def change(x: Moving, a: Moving, b: Moving) -> Tensor:
        differs = a.delta is not None or b.delta is not None
        return weighted((x, 1)) + (value * product_change(a, b) if differs else 0)  # type: ignore[no-any-return]

    return in_field(jointly(call.output.base.shape, (x, a, b), change), call.output.base.dtype)


@rule(aten.addcdiv.default)
def addcdiv(call: Call, x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Outcome:
    """Of ``x + value a / b``: ``dx + value (da - (a/b) db) / (b + db)``."""

    def change(x: Moving, a: Moving, b: Moving) -> Tensor:
        differs = a.delta is not None or b.delta is not None
        ratio = Moving(a.base / b.base, None)
        return weighted((x, 1)) + (value * quotient_change(a, b, ratio) if differs else 0)  # type: ignore[no-any-return]

    return in_field(jointly(call.output.base.shape, (x, a, b), change), call.output.base.dtype)


@rule(aten.logaddexp.default)
def logaddexp(call: Call, a: Operand, b: Operand) -> Outcome:
    """Of ``log(e^a + e^b) = b + softplus(a - b)``."""

    def change(a: Moving, b: Moving) -> Tensor:
        inner = weighted((a, 1), (b, -1))
        return weighted((b, 1)) + formulas.softplus(formulas.gap(a.base, b.base), inner)  # type: ignore[no-any-return]

    return jointly(call.output.base.shape, (a, b), change)


@rule(
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    rank_one=True,
    low_rank=True,
)
def identity_rule(call: Call, x: Operand, **_: Any) -> Outcome:
    """The difference itself."""
    return x.difference


@rule(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def cast_rule(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
    """A change of dtype among real or among complex numbers changes the difference's, half types being held in float32.

    From integers to floating-point numbers the difference is the same number, and so it is from real to complex; from
    complex to real it is the real part. To integers and booleans the cast is evaluated.
    """
    dtype = call.output.base.dtype
    assert x.difference is not None
    if not dtype.is_floating_point and not dtype.is_complex:
        return jointly(x.base.shape, (x,), lambda m: _cast_change(m, dtype))
    real = x.base.is_complex() and not dtype.is_complex
    return map_delta(x.difference, lambda d: (d.real if real else d).to(difference_dtype(dtype)))


def _cast_change(m: Moving, dtype: torch.dtype) -> Int64[Tensor, "*entries"]:
    wide = m.map(widened)
    return wide.moved.to(dtype).to(torch.int64) - wide.base.to(dtype).to(torch.int64)  # type: ignore[no-any-return]


EVALUATED = (
    "acos acosh angle asin asinh atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift "
    "bitwise_xor ceil copysign digamma eq erfinv float_power floor floor_divide fmax fmin fmod frac gcd ge gt "
    "heaviside hypot i0 isclose isfinite isinf isnan lcm ldexp le lgamma logaddexp2 logical_and logical_not logical_or "
    "logical_xor logit lt nan_to_num ne polygamma remainder round sgn sign signbit sinc special_entr special_erfcx "
    "special_i0 special_i0e special_i1 special_i1e special_log_ndtr special_xlog1py special_zeta trunc xlogy"
)
"""Pointwise operations that are evaluated at the entries that differ: steps, comparisons and rare functions."""

for _name in EVALUATED.split():
    _packet = getattr(aten, _name)
    for _overload in (getattr(_packet, _o) for _o in _packet.overloads()):
        if "Tensor" in str(_overload._schema) and not _overload._schema.is_mutable:
            rule(_overload)(evaluated)
