"""Batch norm, residual sum and relu in one call: what follows nearly every convolution.

On a CPU two fused kernels replace a dozen passes over memory; elsewhere the plain rules are composed.
"""

from __future__ import annotations

from typing import Any

from deepzero.graph.calls import Call, Operand, Value
from deepzero.graph.cpu import kernels
from deepzero.graph.differences import Channel, Dense, Difference, constant_over
from deepzero.graph.rules.activation import relu
from deepzero.graph.rules.base import apply_pointwise
from deepzero.graph.rules.normalization import batch_norm_train, batch_statistics
from deepzero.graph.rules.pointwise import broadcast, total


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
    return None if difference is None else apply_pointwise(Operand(call.values[1], difference), relu)


def _fused(call: Call, x: Operand, weight: Any, eps: float, residual: Operand | None) -> Difference | None:
    extra = None if residual is None else residual.difference
    statistics = batch_statistics(call, x, eps)
    gamma = None if weight is None else weight.base
    centred = call.values[0].remember("centred", lambda: Value(statistics.centred))
    scale = statistics.scale.reshape(-1)
    if isinstance(x.difference, Channel) and x.difference.axis == 1 and extra is None:
        delta = kernels.normalize_relu_channel(x.difference, centred, scale, gamma, call.values[1])
        return None if delta is None else x.difference.with_delta(delta)
    assert x.difference is not None
    dense = x.difference.dense()
    more = None if extra is None else extra.dense()
    delta = kernels.normalize_relu_dense(dense, centred, scale, gamma, call.values[1], more, overwrite=call.overwrite)
    return None if delta is None else Dense(delta)
