"""A convolution and its tail in one: batch norm by batch statistics, a residual sum, relu, maxima, and averages.

This is what convolutional networks are made of. A device may have kernels that take a difference through all of it
with a copy of no more than the result in memory; elsewhere the rules of the parts follow each other.

Legend: c output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, OneHot
from deepzero.graph.rules.base import RULES, difference_of, in_kind_for, rule
from deepzero.graph.rules.convolution import convolution
from deepzero.graph.rules.normalization import batch_norm_relu, batch_statistics
from deepzero.graph.rules.pooling import is_whole_average, max_pool2d
from deepzero.graph.tails import Tail
from deepzero.graph.windows import ConvolutionGeometry, Window


@rule(blocks=True)
def convolved_tail(
    call: Call,
    convolved: Sequence[Any],
    normalized: Sequence[Any],
    residual: Operand | None,
    pooled: Sequence[Any],
    averaged: tuple[Any, Sequence[Any]] | None = None,
) -> Outcome:
    """``average(pool(relu(batch_norm(convolution(*convolved), *normalized) + residual)))``.

    ``call.values`` are convolution, batch norm, the relu's argument, the relu, the maxima, if any are taken, and the
    averages, likewise.

    Args:
        call: the operations.
        convolved: arguments of the convolution.
        normalized: weight, bias and eps of the batch norm.
        residual: added to it, if not None.
        pooled: arguments of the pooling behind the input; none without one.
        averaged: operation and further arguments of an average pooling.
    """
    if averaged is None:
        return _tail_change(call, convolved, normalized, residual, pooled, mean=False)
    (*values, last), (target, args) = call.values, averaged
    inner, front = Call(call.node, tuple(values)), values[-1]
    mean = is_whole_average(target, args, {}, front.base.shape[2:])
    change = _tail_change(inner, convolved, normalized, residual, pooled, mean=mean)
    if change is None or isinstance(change, tuple) or (mean and change.shape == last.base.shape):
        return change
    return RULES[target](Call(call.node, (last,)), Operand(front, change), *args)


def _tail_change(
    call: Call,
    convolved: Sequence[Any],
    normalized: Sequence[Any],
    residual: Operand | None,
    pooled: Sequence[Any],
    *,
    mean: bool,
) -> Outcome:
    """The change in front of the averages, or of them where a kernel takes them: of the mean over all places."""
    fast: Outcome = _fused(call, convolved, normalized, residual, pooled, mean=mean)
    if fast is not None:
        return fast
    if pooled:
        front = Call(call.node, call.values[:4])
        behind: Any = _tail_change(front, convolved, normalized, residual, (), mean=False)
        if behind is None:
            return None
        return max_pool2d(Call(call.node, call.values[4:]), _in_order(Operand(call.values[3], behind)), *pooled)
    convolved, residual = [_in_order(a) for a in convolved], _in_order(residual)
    differs = any(difference_of(a) is not None for a in convolved)
    change = convolution(Call(call.node, call.values[:1]), *convolved) if differs else None
    assert not isinstance(change, tuple)
    norm = Call(call.node, call.values[1:4], overwrite=True)
    weight, bias, eps = normalized
    return batch_norm_relu(norm, Operand(call.values[0], change), weight, bias, eps, residual)


def _in_order(argument: Any) -> Any:
    """An argument with its difference as the rules of the parts take it."""
    if not isinstance(argument, Operand) or argument.difference is None:
        return argument
    difference: Any = in_kind_for(None, argument.difference)
    return Operand(argument.value, difference)


def _fused(
    call: Call,
    convolved: Sequence[Any],
    normalized: Sequence[Any],
    residual: Operand | None,
    pooled: Sequence[Any],
    *,
    mean: bool,
) -> Any:
    """By a kernel of the device, if it has one."""
    x, weight, *options = convolved
    shape, own, bias = call.values[0].base.shape, kernels.on(x.base), options[0] if options else None
    aligned = residual is None or residual.base.shape == shape
    if len(shape) != 4 or not aligned or difference_of(bias) is not None or weight.base.dim() != 4:
        return None
    d, moved, extra = x.difference, weight.difference, difference_of(residual)
    gamma, beta = (difference_of(a) for a in normalized[:2])
    if gamma is not None or beta is not None:
        change = _only([d, moved, extra, gamma, beta])
        if not isinstance(change, OneHot):
            return None
        return own.affine_to_tail(change, shape, _tail(call, normalized, pooled, mean=mean), factor=gamma is not None)
    geometry = call.memo("geometry", lambda: ConvolutionGeometry(weight.base, *_options(options)))
    if d is None and isinstance(moved, OneHot) and extra is None:
        return own.slices_to_tail(x.value, moved, geometry, shape, _tail(call, normalized, pooled, mean=mean))
    if moved is not None or d is None:
        return None
    d = d if isinstance(d, Dense | Blocks) or (isinstance(d, Channel) and d.axis == 1) else Dense(d.dense())
    return own.convolve_to_tail(d, weight.value, geometry, shape, _tail(call, normalized, pooled, mean=mean), extra)


def _only(differences: Sequence[Difference | Blocks | None]) -> Difference | Blocks | None:
    """The only difference, if there is one alone."""
    found = [d for d in differences if d is not None]
    return found[0] if len(found) == 1 else None


def _options(options: Sequence[Any]) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups behind a bias; those that are not given are plain."""
    given = tuple(options[1:])
    return (*given, *(1, 0, 1, 1)[len(given) :])


def _tail(call: Call, normalized: Sequence[Any], pooled: Sequence[Any], *, mean: bool) -> Tail:
    gamma, _, eps = normalized
    value, norm, before = call.values[:3]
    statistics = batch_statistics(Call(call.node, (norm,)), Operand(value, None), eps)
    centred = norm.remember("centred", lambda: Value(statistics.centred))
    window = Window.of(*_pooling(pooled)) if pooled else None
    behind = call.values[4] if pooled else None
    weight = None if gamma is None else gamma.base
    return Tail(centred, statistics.scale.reshape(-1), weight, before, behind, window, averaged=mean)


def _pooling(pooled: Sequence[Any]) -> tuple[Any, ...]:
    """Kernel, stride, padding and dilation; the rounding of the output's size shows in its shape."""
    given = tuple(pooled[:4])
    return (*given, *(1, (), 0, 1)[len(given) :])
