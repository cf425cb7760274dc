"""Pointwise activations in cancellation-free form. Each function gives ``f(z + d) - f(z)`` from ``z`` and ``d``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Dense, Difference
from deepzero.graph.rules.base import apply_pointwise, rule
from deepzero.graph.rules.pointwise import broadcast, scaled_by, total
from deepzero.graph.rules.shape import reshaped

aten = torch.ops.aten


def relu(z: Tensor, d: Tensor) -> Tensor:
    """``max(z + d, 0) - max(z, 0)``."""
    return torch.where(z > 0, torch.maximum(d, -z), torch.clamp(z + d, min=0))


def tanh(z: Tensor, d: Tensor) -> Tensor:
    """By the addition theorem: ``tanh d``, times one minus the product of both values."""
    return torch.tanh(d) * (1 - torch.tanh(z) * torch.tanh(z + d))


def sigmoid(z: Tensor, d: Tensor) -> Tensor:
    """``-expm1(-d) * s(z + d) * (1 - s(z))``; the plain difference where d is large and expm1 could overflow."""
    closed = -torch.expm1(-d.clamp(min=-1)) * torch.sigmoid(z + d) * torch.sigmoid(-z)
    return torch.where(d < -1, torch.sigmoid(z + d) - torch.sigmoid(z), closed)


def exp(z: Tensor, d: Tensor) -> Tensor:
    """``exp(z) expm1(d)``; the plain difference where d is large and expm1 could overflow."""
    return torch.where(d > 1, torch.exp(z + d) - torch.exp(z), torch.exp(z) * torch.expm1(d.clamp(max=1)))


def silu(z: Tensor, d: Tensor) -> Tensor:
    """``d * s(z + d) + z * (s(z + d) - s(z))``."""
    return d * torch.sigmoid(z + d) + z * sigmoid(z, d)


def _gauss_interval(z: Tensor, d: Tensor) -> Tensor:
    """``Phi(z + d) - Phi(z)``: a midpoint expansion for small d, the erf difference (in float64) otherwise.

    With m the midpoint and phi the normal density, the integral of phi over an interval of length d around m is
    ``phi(m) * d * (1 + (m^2 - 1) d^2/24 + (m^4 - 6 m^2 + 3) d^4/1920 + ...)``.
    """
    m = z + d / 2
    m2, d2 = m * m, d * d
    density = torch.exp(-m2 / 2) * (1 / math.sqrt(2 * math.pi))
    series = density * d * (1 + (m2 - 1) * d2 / 24 + (m2 * m2 - 6 * m2 + 3) * d2 * d2 / 1920)
    small = d.abs() < (0.05 if d.dtype == torch.float32 else 0.002)
    if bool(small.all()):
        return series
    wide_z, wide_d = z.double(), d.double()
    root = math.sqrt(0.5)
    exact = 0.5 * (torch.special.erf((wide_z + wide_d) * root) - torch.special.erf(wide_z * root))
    return torch.where(small, series, exact.to(d.dtype))


def gelu(z: Tensor, d: Tensor) -> Tensor:
    """Exact gelu ``z * Phi(z)``: ``d * Phi(z + d) + z * (Phi(z + d) - Phi(z))``."""
    upper: Tensor = torch.special.ndtr(z + d)
    return d * upper + z * _gauss_interval(z, d)


def gelu_tanh(z: Tensor, d: Tensor) -> Tensor:
    """The tanh approximation of gelu, ``z/2 * (1 + tanh(u(z)))`` with ``u = sqrt(2/pi) (z + 0.044715 z^3)``."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    u = k * (z + c * z**3)
    du = k * (d + c * d * (3 * z * z + 3 * z * d + d * d))
    return 0.5 * (d * (1 + torch.tanh(u + du)) + z * tanh(u, du))


def leaky_relu(z: Tensor, d: Tensor, slope: float) -> Tensor:
    """``slope * d + (1 - slope) * (relu(z + d) - relu(z))``."""
    return slope * d + (1 - slope) * relu(z, d)


def _register(target: Any, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @rule(target)
    def apply(call: Call, x: Operand) -> Outcome:
        return apply_pointwise(x, function)


_register(aten.relu.default, relu)
_register(aten.tanh.default, tanh)
_register(aten.sigmoid.default, sigmoid)
_register(aten.silu.default, silu)
_register(aten.exp.default, exp)
_register(aten.log.default, lambda z, d: torch.where(d == 0, 0, torch.log1p(d / z)))
_register(aten.sqrt.default, lambda z, d: torch.where(d == 0, 0, d / (torch.sqrt(z + d) + torch.sqrt(z))))
_register(aten.reciprocal.default, lambda z, d: -d / (z * (z + d)))


@rule(aten.gelu.default)
def gelu_rule(call: Call, x: Operand, *, approximate: str = "none") -> Outcome:
    """Either form of gelu."""
    return apply_pointwise(x, gelu if approximate == "none" else gelu_tanh)


@rule(aten.leaky_relu.default)
def leaky_relu_rule(call: Call, x: Operand, negative_slope: float = 0.01) -> Outcome:
    """Leaky relu with its slope."""
    return apply_pointwise(x, lambda z, d: leaky_relu(z, d, negative_slope))


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
