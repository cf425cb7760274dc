"""Pointwise functions of one operand; the formulas are in :mod:`deepzero.graph.rules.formulas`.

Legend: entries: those of a value that differ, in whatever shape; base values z and differences d broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Channel, Dense, Difference, RankOne, with_entries
from deepzero.graph.rules import formulas
from deepzero.graph.rules.base import apply_pointwise, map_delta, normal_dim, rule
from deepzero.graph.rules.fallback import evaluated
from deepzero.graph.rules.formulas import Entries, relu
from deepzero.graph.rules.frames import broadcast
from deepzero.graph.rules.pointwise import scaled_by, total
from deepzero.graph.rules.rank_one import rectified
from deepzero.graph.rules.shape import reshaped

__all__ = ["dropout", "prelu", "relu"]
aten = torch.ops.aten
Formula = Callable[..., Tensor]

GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
"""The kernel's name for an approximation."""
KERNELS: dict[Any, Callable[..., tuple[str, float]]] = {
    aten.relu.default: lambda: ("relu", 0.0),
    aten.leaky_relu.default: lambda slope=0.01: ("leaky_relu", slope),
    aten.gelu.default: lambda approximate="none": (GELUS[approximate], 0.0),
    aten.tanh.default: lambda: ("tanh", 0.0),
    aten.sigmoid.default: lambda: ("sigmoid", 0.0),
    aten.silu.default: lambda: ("silu", 0.0),
}
"""Function for which a device may have a kernel -> the kernel's name and a slope, from the options of a call."""
SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)
"""alpha, scale and input scale of the ELU that SELU is."""


def _register(
    target: Any,
    function: Formula,
    complex_function: Formula | None = None,
) -> None:
    """A rule for a function of one operand, ``function(z, d, *options)``.

    Integer operands are evaluated, and so are complex ones unless there is a formula for them.
    """

    @rule(target, rank_one=True)
    def apply(call: Call, x: Operand, *options: Any, **named: Any) -> Outcome:
        chosen = function if x.base.is_floating_point() else complex_function if x.base.is_complex() else None
        if chosen is None:
            return evaluated(call, x, *options, **named)
        formula = partial(_with_options, chosen, options, named)
        kernel = None if target not in KERNELS or x.base.is_complex() else KERNELS[target](*options, **named)
        return apply_pointwise(x, formula) if kernel is None else by_kernel(x, formula, *kernel)


def _with_options(
    function: Formula, options: tuple[Any, ...], named: dict[str, Any], z: Entries, d: Entries
) -> Entries:
    return function(z, d, *options, **named)


def by_kernel(x: Operand, formula: Formula, function: str, slope: float = 0.0) -> Difference:
    """The change of a function by the kernel of the device of x, or by its formula where that has none."""

    def change(z: Entries, d: Entries) -> Entries:
        """Of rank-one differences: of all entries, which are written out for it, or of some rows."""
        value, stacked = (x.value, d) if z is x.base else (Value(z), d.unsqueeze(0))
        out = kernels.on(d).activation(function, value, Dense(stacked), slope, overwrite=z is x.base)
        return formula(z, d) if out is None else out.reshape(d.shape)

    difference = x.difference
    if isinstance(difference, RankOne):
        return apply_pointwise(x, change)
    if isinstance(difference, (Channel, Dense)):
        own = kernels.on(difference.delta)
        delta = own.activation(function, x.value, difference, slope, overwrite=x.expendable)
        if delta is not None:
            return with_entries(difference, delta)
    return apply_pointwise(x, formula)


def _softplus(z: Entries, d: Entries, beta: float = 1, threshold: float = 20) -> Entries:
    """``log(1 + exp(beta z)) / beta``, and z itself where ``beta z`` is above the threshold."""
    change = formulas.softplus(beta * z, beta * d) / beta
    before, after = beta * z > threshold, beta * (z + d) > threshold
    if not bool(before.any() | after.any()):
        return change
    dropped = [
        torch.where(above, torch.log1p(torch.exp(-beta * v)) / beta, 0) for above, v in ((before, z), (after, z + d))
    ]
    return torch.where(before & after, d, change + dropped[0] - dropped[1])


def _elu(z: Entries, d: Entries, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Entries:
    return formulas.elu(z, d, alpha, scale, input_scale)


def _celu(z: Entries, d: Entries, alpha: float = 1) -> Entries:
    return formulas.elu(z, d, alpha, 1, 1 / alpha)


def _hardtanh(z: Entries, d: Entries, low: float = -1, high: float = 1) -> Entries:
    return formulas.clamp(z, d, low, high)


def _threshold(z: Entries, d: Entries, threshold: float, value: float) -> Entries:
    """Nothing below the threshold, where the value is fixed; ``d`` above; the way between where it is crossed."""
    before, after = z > threshold, d > threshold - z
    return torch.where(before, torch.where(after, d, value - z), torch.where(after, (z - value) + d, 0))


def _gelu(z: Entries, d: Entries, *, approximate: str = "none") -> Entries:
    return formulas.gelu(z, d) if approximate == "none" else formulas.gelu_tanh(z, d)


@rule(aten.relu.default, rank_one=True)
def relu_rule(call: Call, x: Operand) -> Outcome:
    """Linear but for its kink, so a rank-one difference stays one."""
    if not x.base.is_floating_point():
        return evaluated(call, x)
    if isinstance(x.difference, RankOne):
        return rectified(x)
    return by_kernel(x, relu, "relu")


@rule(aten.leaky_relu.default, rank_one=True)
def leaky_relu_rule(call: Call, x: Operand, negative_slope: float = 0.01) -> Outcome:
    """As :func:`relu_rule`, with a slope below zero."""
    if not x.base.is_floating_point():
        return evaluated(call, x, negative_slope)
    if isinstance(x.difference, RankOne):
        return rectified(x, negative_slope)
    return by_kernel(x, partial(formulas.leaky_relu, slope=negative_slope), "leaky_relu", negative_slope)


def _complex_exp(z: Entries, d: Entries) -> Entries:
    """``exp(z) expm1(d)``; the plain difference where the real part of d is large and expm1 could overflow."""
    large = d.real > 1
    return torch.where(large, torch.exp(z + d) - torch.exp(z), torch.exp(z) * torch.expm1(torch.where(large, 0, d)))


_register(aten.tanh.default, formulas.tanh)
_register(aten.sigmoid.default, formulas.sigmoid)
_register(aten.silu.default, formulas.silu)
_register(aten.mish.default, formulas.mish)
_register(aten.gelu.default, _gelu)
_register(aten.elu.default, _elu)
_register(aten.celu.default, _celu)
_register(aten.selu.default, lambda z, d: formulas.elu(z, d, *SELU))
_register(aten.softplus.default, _softplus)
_register(aten.log_sigmoid.default, lambda z, d: -formulas.softplus(-z, -d))
_register(aten.hardtanh.default, _hardtanh)
_register(aten.relu6.default, lambda z, d: formulas.clamp(z, d, 0, 6))
_register(aten.hardsigmoid.default, formulas.hardsigmoid)
_register(aten.hardswish.default, formulas.hardswish)
_register(aten.threshold.default, _threshold)
_register(aten.abs.default, formulas.absolute, formulas.absolute)
_register(aten.exp.default, formulas.exp, _complex_exp)
_register(aten.expm1.default, formulas.exp, _complex_exp)
_register(aten.exp2.default, formulas.exp2)
_register(aten.log.default, formulas.log)
_register(aten.log1p.default, formulas.log1p)
_register(aten.log2.default, lambda z, d: formulas.log(z, d) / math.log(2))
_register(aten.log10.default, lambda z, d: formulas.log(z, d) / math.log(10))
_register(aten.sqrt.default, formulas.sqrt)
_register(aten.rsqrt.default, formulas.rsqrt)
_register(aten.reciprocal.default, formulas.reciprocal, formulas.reciprocal)
_register(aten.square.default, formulas.square, formulas.square)
_register(aten.sin.default, formulas.sin)
_register(aten.cos.default, formulas.cos)
_register(aten.tan.default, formulas.tan)
_register(aten.sinh.default, formulas.sinh)
_register(aten.cosh.default, formulas.cosh)
_register(aten.atan.default, formulas.atan)
_register(aten.erf.default, formulas.erf)
_register(aten.erfc.default, lambda z, d: -formulas.erf(z, d))
_register(aten.special_ndtr.default, formulas.gauss_interval)


@rule(aten.deg2rad.default, aten.rad2deg.default)
def scale(call: Call, x: Operand) -> Outcome:
    """Linear: applied to the difference itself."""
    assert x.difference is not None
    return map_delta(x.difference, call.node.target)


@rule(aten.glu.default)
def glu(call: Call, x: Operand, dim: int = -1) -> Outcome:
    """``a s(b)`` for the halves a and b of x: ``da s(b + db) + a (s(b + db) - s(b))``."""
    difference, axis = x.difference, normal_dim(dim, x.base.dim())
    half = call.output.base.shape[axis]
    a, b = x.base.chunk(2, axis)
    if isinstance(difference, Channel) and difference.axis == axis:
        folded = Channel(axis, difference.channels % half, difference.delta, call.output.base.shape)
        upper = (difference.channels < half).reshape(-1, *(1 for _ in folded.delta.shape[1:]))
        gate, value = folded.of(b), folded.of(a)
        of_gate = value * formulas.sigmoid(gate, folded.delta)
        return folded.with_delta(torch.where(upper, folded.delta * torch.sigmoid(gate), of_gate))
    if isinstance(difference, Channel):
        stacked, at = difference.delta.unsqueeze(difference.axis + 1), axis + 1
        a, b = (difference.of(part).unsqueeze(difference.axis + 1) for part in (a, b))
        change = _glu(a, b, *stacked.chunk(2, at)).squeeze(difference.axis + 1)
        return Channel(difference.axis, difference.channels, change, call.output.base.shape)
    assert difference is not None
    return Dense(_glu(a, b, *difference.dense().chunk(2, axis + 1)))


def _glu(a: Entries, b: Entries, da: Entries, db: Entries) -> Entries:
    """``da s(b + db) + a (s(b + db) - s(b))``."""
    return da * torch.sigmoid(b + db) + a * formulas.sigmoid(b, db)


@rule(aten.prelu.default)
def prelu(call: Call, x: Operand, weight: Operand) -> Outcome:
    """Leaky relu with a learned slope ``w`` a channel: its difference at ``w``, plus ``dw * min(z + d, 0)``."""
    shape = x.base.shape
    over_channels = torch.Size(s if d == 1 or len(shape) < 2 else 1 for d, s in enumerate(shape))
    per_channel = over_channels if weight.base.numel() > 1 else torch.Size([1] * len(shape))
    slope = weight.base.reshape(per_channel).expand(shape)
    parts: list[Difference | None] = []
    if x.difference is not None:
        parts += [scaled_by(x.difference, slope, shape), scaled_by(apply_pointwise(x, relu), 1 - slope, shape)]
    if weight.difference is not None:
        change = reshaped(weight.difference, per_channel)
        if x.difference is None:
            parts.append(scaled_by(change, x.base.clamp(max=0), shape))
        else:
            parts.append(Dense(broadcast(change, shape).dense() * (x.base + x.difference.dense()).clamp(max=0)))
    return total(parts)


@rule(aten.native_dropout.default)
def dropout(call: Call, x: Operand, probability: float, train: bool | None) -> Outcome:
    """Dropout reuses the base forward's mask (common random numbers)."""
    if train is False:
        return (x.difference,)
    mask = call.output.base[1]
    scale = 0.0 if probability >= 1 else 1 / (1 - probability)
    keep = call.memo("keep", lambda: mask.to(x.base.dtype) * scale)
    return (apply_pointwise(Operand(type(x.value)(keep), x.difference), lambda k, d: k * d),)
