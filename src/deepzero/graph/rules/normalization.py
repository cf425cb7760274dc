"""Batch, layer and group normalization, with statistics taken per perturbation.

With centred base values ``c = z - m``, variance v and ``s = sqrt(v + eps)``, a difference d with mean ``dm`` gives

    dv = mean(2 c (d - dm) + (d - dm)^2),   s' = sqrt(v + dv + eps),   1/s' - 1/s = -dv / (s s' (s + s')),
    change of the normalized value = (d - dm) / s' + c (1/s' - 1/s).

Nothing cancels: no term subtracts two nearly equal values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, constant_over
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.pointwise import broadcast, scaled_by, total

aten = torch.ops.aten


@dataclass(frozen=True)
class Statistics:
    """Base statistics: centred values, and ``s = sqrt(v + eps)``, of length 1 along the dimensions it is taken over."""

    centred: Float[Tensor, "*shape"]
    scale: Float[Tensor, "*#shape"]

    @classmethod
    def of(cls, z: Float[Tensor, "*shape"], dims: tuple[int, ...], eps: float) -> Statistics:
        """Taken over ``dims`` of ``z``."""
        centred = z - z.mean(dims, keepdim=True)
        return cls(centred, (centred.square().mean(dims, keepdim=True) + eps).sqrt())


def normalized_change(
    d: Float[Tensor, "*stacked"],
    centred: Float[Tensor, "*#stacked"],
    scale: Float[Tensor, "*#stacked"],
    dims: tuple[int, ...],
) -> Float[Tensor, "*stacked"]:
    """Change of ``(z - m) / s``; ``dims`` are the normalized dimensions of the stacked difference ``d``."""
    fluctuation = d - d.mean(dims, keepdim=True)
    dv = (fluctuation * (2 * centred + fluctuation)).mean(dims, keepdim=True)
    new_scale = (scale.square() + dv).sqrt()
    inverse_change = -dv / (scale * new_scale * (scale + new_scale))
    return fluctuation / new_scale + centred * inverse_change


def affine_change(
    shape: torch.Size, change: Difference | None, normalized: Tensor, weight: Any, bias: Any, axis: int | None
) -> Difference | None:
    """``(w + dw)(n + dn) + b + db - (w n + b)``; weight and bias belong to dimension ``axis``, or to the last ones."""
    parts: list[Difference | None] = []
    dw, db = difference_of(weight), difference_of(bias)
    if change is not None:
        parts.append(change if weight is None else scaled_by(change, _aligned(weight.base, shape, axis), shape))
    if dw is not None:
        dw = broadcast(_aligned_difference(dw, shape, axis), shape)
        parts.append(scaled_by(dw, normalized, shape))
        if change is not None:
            parts.append(Dense(dw.dense() * change.dense()))
    if db is not None:
        parts.append(broadcast(_aligned_difference(db, shape, axis), shape))
    return total(parts)


def _aligned(tensor: Tensor, shape: torch.Size, axis: int | None) -> Tensor:
    return tensor if axis is None else tensor.reshape(-1, *(1 for _ in shape[axis + 1 :]))


def _aligned_difference(difference: Difference, shape: torch.Size, axis: int | None) -> Difference:
    if axis is None:
        return difference
    aligned = torch.Size((shape[axis], *(1 for _ in shape[axis + 1 :])))
    if isinstance(difference, OneHot):
        return OneHot(difference.indices, difference.values, aligned)
    return Dense(difference.dense().reshape(difference.count, *aligned))


def batch_statistics(call: Call, x: Operand, eps: float) -> Statistics:
    """Statistics over samples and positions, once a step."""
    dims = tuple(d for d in range(x.base.dim()) if d != 1)
    return call.values[0].remember("statistics", lambda: Statistics.of(x.base, dims, eps))


def batch_norm_train(
    call: Call, x: Operand, weight: Operand | None, bias: Operand | None, eps: float
) -> Difference | None:
    """Batch norm with batch statistics, per perturbation."""
    shape = x.base.shape
    statistics = batch_statistics(call, x, eps)
    change = _batch_change(x.difference, statistics)
    return affine_change(shape, change, statistics.centred / statistics.scale, weight, bias, axis=1)


def _batch_change(difference: Difference | None, statistics: Statistics) -> Difference | None:
    if difference is None:
        return None
    if isinstance(difference, Channel) and difference.axis == 1:
        dims = tuple(range(1, difference.delta.dim()))
        if constant_over(difference.delta, dims):
            return None  # the mean moves along with it
        centred = difference.of(statistics.centred)
        scale = statistics.scale.reshape(-1)[difference.channels].reshape(-1, *(1 for _ in dims))
        return difference.with_delta(normalized_change(difference.delta, centred, scale, dims))
    delta = difference.dense()
    dims = tuple(d for d in range(1, delta.dim()) if d != 2)
    return Dense(normalized_change(delta, statistics.centred, statistics.scale, dims))


@rule(aten._native_batch_norm_legit_functional.default)
def batch_norm(
    call: Call,
    x: Operand,
    weight: Any,
    bias: Any,
    mean: Operand,
    var: Operand,
    training: bool,
    momentum: float,
    eps: float,
) -> Outcome:
    """Batch norm with running statistics; in train mode they play no part in the output and are not followed."""
    if training:
        return (batch_norm_train(call, x, weight, bias, eps), None, None, None, None)
    if mean.difference is not None or var.difference is not None:
        return fallback(call, x, weight, bias, mean, var, training, momentum, eps)
    return (batch_norm_eval(x, weight, bias, mean, var, eps),)


@rule(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_statistics(
    call: Call, x: Operand, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> Outcome:
    """Batch norm that keeps no running statistics."""
    return (batch_norm_train(call, x, weight, bias, eps),)


@rule(aten._native_batch_norm_legit_no_training.default)
def batch_norm_inference(
    call: Call, x: Operand, weight: Any, bias: Any, mean: Operand, var: Operand, momentum: float, eps: float
) -> Outcome:
    """Batch norm in eval mode: affine."""
    if mean.difference is not None or var.difference is not None:
        return fallback(call, x, weight, bias, mean, var, momentum, eps)
    return (batch_norm_eval(x, weight, bias, mean, var, eps),)


def batch_norm_eval(x: Operand, weight: Any, bias: Any, mean: Operand, var: Operand, eps: float) -> Difference | None:
    """``d / sqrt(running_var + eps)``, then the affine part."""
    shape = x.base.shape
    inverse = _aligned(torch.rsqrt(var.base + eps), shape, 1)
    change = None if x.difference is None else scaled_by(x.difference, inverse, shape)
    normalized = (x.base - _aligned(mean.base, shape, 1)) * inverse
    return affine_change(shape, change, normalized, weight, bias, axis=1)


@rule(aten.layer_norm.default)
def layer_norm(
    call: Call,
    x: Operand,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Outcome:
    """Layer norm over the last dimensions."""
    dims = tuple(range(-len(normalized_shape), 0))
    statistics = call.memo("statistics", lambda: Statistics.of(x.base, dims, eps))
    change = None
    if x.difference is not None:
        change = Dense(normalized_change(x.difference.dense(), statistics.centred, statistics.scale, dims))
    return affine_change(x.base.shape, change, statistics.centred / statistics.scale, weight, bias, axis=None)


@rule(aten.group_norm.default)
def group_norm(
    call: Call, x: Operand, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Outcome:
    """Group norm: statistics per sample over the channels of a group and all positions."""
    shape = x.base.shape
    grouped = x.base.reshape(shape[0], groups, -1)
    statistics = call.memo("statistics", lambda: Statistics.of(grouped, (2,), eps))
    change = None
    if x.difference is not None:
        delta = x.difference.dense()
        moved = normalized_change(delta.reshape(-1, *grouped.shape), statistics.centred, statistics.scale, (3,))
        change = Dense(moved.reshape(delta.shape))
    normalized = (statistics.centred / statistics.scale).reshape(shape)
    return affine_change(shape, change, normalized, weight, bias, axis=1)
