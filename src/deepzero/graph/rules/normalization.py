"""Batch, layer, group, instance, root-mean-square and weight normalization, with statistics taken per perturbation.

With centred base values ``c = z - m``, variance v and ``s = sqrt(v + eps)``, a difference d with mean ``dm`` gives

    dv = mean(2 c (d - dm) + (d - dm)^2),   s' = sqrt(v + dv + eps),   1/s' - 1/s = -dv / (s s' (s + s')),
    change of the normalized value = (d - dm) / s' + c (1/s' - 1/s).

Nothing cancels: no term subtracts two nearly equal values, unless most of the variance goes. Then s' is taken from what
is left, :func:`~deepzero.graph.rules.formulas.changed_root`. Batch norm, a residual sum and relu in one call are what
follows nearly every convolution: a device may have fused kernels for them.

Legend: shape: of a base value; stacked: of its differences, with the dimension of perturbations in front, or of what
broadcasts against them; # is 1 along what statistics are taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Channel, Dense, Difference, OneHot, constant_over
from deepzero.graph.rules.activation import by_kernel, relu
from deepzero.graph.rules.base import base_of, difference_of, map_delta, rule
from deepzero.graph.rules.formulas import changed_root
from deepzero.graph.rules.low_rank import Normalization, normalized_low_rank
from deepzero.graph.rules.pointwise import broadcast, scaled_by, total
from deepzero.graph.rules.shape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Statistics:
    """Base statistics: centred values, and ``s = sqrt(v + eps)``, of length 1 along the dimensions it is taken over."""

    centred: Float[Tensor, "*shape"]
    scale: Float[Tensor, "*#shape"]
    eps: float

    @classmethod
    def of(cls, z: Float[Tensor, "*shape"], dims: tuple[int, ...], eps: float) -> Statistics:
        """Taken over ``dims`` of ``z``."""
        centred = z - z.mean(dims, keepdim=True)
        return cls(centred, (centred.square().mean(dims, keepdim=True) + eps).sqrt(), eps)


def normalized_change(
    d: Float[Tensor, "*stacked"],
    centred: Float[Tensor, "*#stacked"],
    scale: Float[Tensor, "*#stacked"],
    dims: tuple[int, ...],
    eps: float,
) -> Float[Tensor, "*stacked"]:
    """Change of ``(z - m) / s``; ``dims`` are the normalized dimensions of the stacked difference ``d``."""
    return rescaled_change(d - d.mean(dims, keepdim=True), centred, scale, dims, eps)


def _ratio_change(
    u: Float[Tensor, "*#stacked"],
    c: Float[Tensor, "*#stacked"],
    scale: Float[Tensor, "*#stacked"],
    dv: Float[Tensor, "*#stacked"],
    left: Callable[[], Float[Tensor, "*#stacked"]],
) -> Float[Tensor, "*#stacked"]:
    """``(c + u) / s' - c / s = u / s' + c (1/s' - 1/s)`` with ``s'^2 = s^2 + dv``, or ``left()`` if it is little."""
    new_scale = changed_root(scale, dv, left)
    return u / new_scale + c * (-dv / (scale * new_scale * (scale + new_scale)))


def affine_change(
    shape: torch.Size,
    change: Difference | None,
    normalized: Float[Tensor, "*shape"],
    weight: Any,
    bias: Any,
    axis: int | None,
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


def _aligned(tensor: Float[Tensor, "*own"], shape: torch.Size, axis: int | None) -> Float[Tensor, ...]:
    """One number a channel of dimension ``axis``, broadcastable against values of ``shape``."""
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
        return difference.with_delta(normalized_change(difference.delta, centred, scale, dims, statistics.eps))
    delta = difference.dense()
    dims = tuple(d for d in range(1, delta.dim()) if d != 2)
    return Dense(normalized_change(delta, statistics.centred, statistics.scale, dims, statistics.eps))


def batch_norm_relu(
    call: Call, x: Operand, weight: Operand | None, bias: Operand | None, eps: float, residual: Operand | None
) -> Difference | None:
    """``relu(batch_norm(x) + residual)`` in train mode; ``call.values`` are batch norm, the relu's input, the relu."""
    affine_differs = any(o is not None and o.difference is not None for o in (weight, bias))
    aligned = residual is None or residual.base.shape == x.base.shape
    if aligned and not affine_differs and x.difference is not None:
        if isinstance(x.difference, Channel) and constant_over(x.difference.delta, _all_but_first(x.difference)):
            return _relu(call, None if residual is None else residual.difference)  # the mean moves along
        fast = _fused(call, x, weight, eps, residual)
        if fast is not None:
            return fast
    normalized = batch_norm_train(call, x, weight, bias, eps)
    extra = None if residual is None else residual.difference
    shape = call.values[1].base.shape
    return _relu(call, total([None if d is None else broadcast(d, shape) for d in (normalized, extra)]))


def _all_but_first(difference: Channel) -> tuple[int, ...]:
    return tuple(range(1, difference.delta.dim()))


def _relu(call: Call, difference: Difference | None) -> Difference | None:
    return None if difference is None else by_kernel(Operand(call.values[1], difference), relu, "relu")


def _fused(call: Call, x: Operand, weight: Any, eps: float, residual: Operand | None) -> Difference | None:
    extra = None if residual is None else residual.difference
    statistics = batch_statistics(call, x, eps)
    gamma = None if weight is None else weight.base
    centred = call.values[0].remember("centred", lambda: Value(statistics.centred))
    scale = statistics.scale.reshape(-1)
    if isinstance(x.difference, Channel) and x.difference.axis == 1 and extra is None:
        own = kernels.on(x.difference.delta)
        delta = own.normalize_relu_channel(x.difference, centred, scale, gamma, call.values[1])
        return None if delta is None else x.difference.with_delta(delta)
    assert x.difference is not None
    own = kernels.on(x.base)
    return own.normalize_relu_dense(
        x.difference, centred, scale, gamma, call.values[1], extra, overwrite=call.overwrite
    )


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
    return (batch_norm_eval(x, weight, bias, mean, var, eps),)


def batch_norm_eval(x: Operand, weight: Any, bias: Any, mean: Operand, var: Operand, eps: float) -> Difference | None:
    """``(z - mean) / sqrt(var + eps)``, then the affine part; the statistics may differ too."""
    shape = x.base.shape
    scale = _aligned((var.base + eps).sqrt(), shape, 1)
    centred = x.base - _aligned(mean.base, shape, 1)
    moved = _centred_change(x.difference, mean.difference, shape)
    change = None if moved is None else scaled_by(moved, 1 / scale, shape)
    if var.difference is not None:
        dv = broadcast(_aligned_difference(var.difference, shape, 1), shape).dense()
        u, left = dv.new_zeros(()) if moved is None else moved.dense(), _aligned(var.base, shape, 1) + dv + eps
        change = Dense(_ratio_change(u, centred, scale, dv, lambda: left))
    return affine_change(shape, change, centred / scale, weight, bias, axis=1)


def _centred_change(d: Difference | None, mean: Difference | None, shape: torch.Size) -> Difference | None:
    if mean is None:
        return d
    return total([d, map_delta(broadcast(_aligned_difference(mean, shape, 1), shape), torch.neg)])


def change_apart(difference: Difference, statistics: Statistics, dims: tuple[int, ...]) -> Difference:
    """The normalized change over ``dims``; a channel of another dimension stays one, and only it is computed."""
    if isinstance(difference, Channel) and difference.axis not in dims:
        stacked = tuple(d + 1 if d < difference.axis else d for d in dims)
        centred, scale = difference.of(statistics.centred), difference.of(statistics.scale)
        return difference.with_delta(normalized_change(difference.delta, centred, scale, stacked, statistics.eps))
    stacked = tuple(d + 1 for d in dims)
    return Dense(normalized_change(difference.dense(), statistics.centred, statistics.scale, stacked, statistics.eps))


@rule(aten.layer_norm.default, rank_one=True, low_rank=True)
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
    dims = tuple(range(x.base.dim() - len(normalized_shape), x.base.dim()))
    statistics = call.memo("statistics", lambda: Statistics.of(x.base, dims, eps))
    if len(dims) == 1 and difference_of(weight) is None and difference_of(bias) is None:
        base = Normalization(statistics.centred, statistics.scale, eps, base_of(weight), subtracts_mean=True)
        low_rank = normalized_low_rank(call, x.difference, base)
        if low_rank is not None:
            return low_rank
    centred = call.memo("centred", lambda: Value(statistics.centred))
    fused = _fused_rows(x, centred, statistics.scale, eps, weight, len(dims), mean=True)
    if fused is not None:
        return total([fused, _broadcast_bias(bias, x.base.shape)])
    change = None if x.difference is None else change_apart(x.difference, statistics, dims)
    normalized = call.memo("normalized", lambda: statistics.centred / statistics.scale)
    return affine_change(x.base.shape, change, normalized, weight, bias, axis=None)


def _fused_rows(
    x: Operand, centred: Value, scale: Float[Tensor, "*#shape"], eps: float, weight: Any, dims: int, *, mean: bool
) -> Difference | None:
    """The change with a fixed weight, or none, by a kernel of the device."""
    if difference_of(weight) is not None or not isinstance(x.difference, (Channel, Dense)):
        return None
    own, factor = kernels.on(x.difference.delta), None if weight is None else weight.base
    return own.normalize(x.difference, centred, scale, eps, factor, dims, mean=mean, overwrite=x.expendable)


def _broadcast_bias(bias: Any, shape: torch.Size) -> Difference | None:
    """The difference of a bias, if it has one."""
    change = difference_of(bias)
    return None if change is None else broadcast(change, shape)


@rule(aten.rms_norm.default, rank_one=True, low_rank=True)
def rms_norm(
    call: Call, x: Operand, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Outcome:
    """``z / sqrt(mean(z^2) + eps)`` over the last dimensions: layer norm without a mean."""
    dims = tuple(range(x.base.dim() - len(normalized_shape), x.base.dim()))
    small = torch.finfo(x.base.dtype).eps if eps is None else eps
    scale = call.memo("scale", lambda: torch.sqrt(x.base.square().mean(dims, keepdim=True) + small))
    if len(dims) == 1 and difference_of(weight) is None:
        base = Normalization(x.base, scale, small, base_of(weight), subtracts_mean=False)
        low_rank = normalized_low_rank(call, x.difference, base)
        if low_rank is not None:
            return low_rank
    fused = _fused_rows(x, x.value, scale, small, weight, len(dims), mean=False)
    if fused is not None:
        return fused
    change = None if x.difference is None else _scaled_change(x, scale, dims, small)
    normalized = call.memo("normalized", lambda: x.base / scale)
    return affine_change(x.base.shape, change, normalized, weight, None, axis=None)


def _scaled_change(x: Operand, scale: Float[Tensor, "*#shape"], dims: tuple[int, ...], eps: float) -> Difference:
    difference = x.difference
    assert difference is not None
    if isinstance(difference, Channel) and difference.axis not in dims:
        stacked = tuple(d + 1 if d < difference.axis else d for d in dims)
        return difference.with_delta(
            rescaled_change(difference.delta, difference.of(x.base), difference.of(scale), stacked, eps)
        )
    return Dense(rescaled_change(difference.dense(), x.base, scale, tuple(d + 1 for d in dims), eps))


def rescaled_change(
    d: Float[Tensor, "*stacked"],
    z: Float[Tensor, "*#stacked"],
    scale: Float[Tensor, "*#stacked"],
    dims: tuple[int, ...],
    eps: float,
) -> Float[Tensor, "*stacked"]:
    """Change of ``z / s`` with ``s^2 = mean(z^2) + eps`` over ``dims`` of the stacked difference ``d``."""
    dv = (d * (2 * z + d)).mean(dims, keepdim=True)
    return _ratio_change(d, z, scale, dv, lambda: (z + d).square().mean(dims, keepdim=True) + eps)


@rule(aten.group_norm.default)
def group_norm(
    call: Call, x: Operand, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Outcome:
    """Group norm: statistics per sample over the channels of a group and all positions."""
    shape = x.base.shape
    grouped = torch.Size((shape[0], groups, shape[1] // groups, *shape[2:]))
    dims = tuple(range(2, len(grouped)))
    statistics = call.memo("statistics", lambda: Statistics.of(x.base.reshape(grouped), dims, eps))
    change = None
    if x.difference is not None:
        change = reshaped(change_apart(reshaped(x.difference, grouped), statistics, dims), shape)
    normalized = call.memo("normalized", lambda: (statistics.centred / statistics.scale).reshape(shape))
    return affine_change(shape, change, normalized, weight, bias, axis=1)


@rule(aten.instance_norm.default)
def instance_norm(
    call: Call,
    x: Operand,
    weight: Any,
    bias: Any,
    mean: Operand | None,
    var: Operand | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Outcome:
    """Statistics per sample and channel over all positions, or running statistics."""
    if not use_input_stats and mean is not None and var is not None:
        return batch_norm_eval(x, weight, bias, mean, var, eps)
    dims = tuple(range(2, x.base.dim()))
    statistics = call.memo("statistics", lambda: Statistics.of(x.base, dims, eps))
    change = None if x.difference is None else change_apart(x.difference, statistics, dims)
    normalized = call.memo("normalized", lambda: statistics.centred / statistics.scale)
    return affine_change(x.base.shape, change, normalized, weight, bias, axis=1)


@rule(aten._weight_norm.default)
def weight_norm(call: Call, v: Operand, g: Operand, dim: int = 0) -> Outcome:
    """``g v / |v|`` with the norm over all dimensions but ``dim``; one entry of v or g moves one slice along it."""
    shape = v.base.shape
    dims = tuple(range(v.base.dim())) if dim == -1 else tuple(d for d in range(v.base.dim()) if d != dim)
    norm = call.memo("norm", lambda: torch.linalg.vector_norm(v.base, dim=dims, keepdim=True))
    parts: list[Difference | None] = []
    if v.difference is not None:
        direction = _on_slice(v.difference, dim) if dim != -1 else Dense(v.difference.dense())
        parts.append(scaled_by(_direction_change(v.base, direction, norm), g.base, shape))
    if g.difference is not None:
        unit = call.memo("unit", lambda: v.base / norm)
        parts.append(scaled_by(broadcast(g.difference, shape), unit, shape))
        if v.difference is not None:
            change = _direction_change(v.base, Dense(v.difference.dense()), norm).dense()
            parts.append(Dense(broadcast(g.difference, shape).dense() * change))
    return total(parts)


def _on_slice(difference: Difference, dim: int) -> Difference:
    """One entry as a channel along ``dim``, in which it alone differs."""
    if not isinstance(difference, OneHot):
        return difference if isinstance(difference, Channel) and difference.axis == dim else Dense(difference.dense())
    positions = difference.positions()
    rest = torch.Size(s for d, s in enumerate(difference.shape) if d != dim)
    index = torch.zeros_like(difference.indices)
    for d, size in enumerate(difference.shape):
        index = index if d == dim else index * size + positions[d]
    return Channel(dim, positions[dim], OneHot(index, difference.values, rest).dense(), difference.shape)


def _direction_change(v: Float[Tensor, "*shape"], difference: Difference, norm: Float[Tensor, "*#shape"]) -> Difference:
    """Change of ``v / |v|``, by the change of ``|v|^2`` over the dimensions where ``norm`` has length 1."""
    if isinstance(difference, Channel):
        z, old, d = difference.of(v), difference.of(norm), difference.delta
        return difference.with_delta(_unit_change(d, z, old, tuple(range(1, d.dim()))))
    dims = tuple(axis + 1 for axis, size in enumerate(norm.shape) if size != v.shape[axis] or size == 1)
    return Dense(_unit_change(difference.dense(), v, norm, dims))


def _unit_change(
    d: Float[Tensor, "*stacked"],
    v: Float[Tensor, "*#stacked"],
    norm: Float[Tensor, "*#stacked"],
    dims: tuple[int, ...],
) -> Float[Tensor, "*stacked"]:
    """Change of ``v / |v|``, by that of ``|v|^2`` over ``dims``."""

    def summed(squares: Float[Tensor, "*#stacked"]) -> Float[Tensor, "*#stacked"]:
        return squares.sum(dims, keepdim=True) if dims else squares

    return _ratio_change(d, v, norm, summed(d * (2 * v + d)), lambda: summed((v + d).square()))
