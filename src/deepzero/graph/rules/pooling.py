"""Pooling.

Averages are linear. For maxima, with the base maximum M of a window,
``max_j (z_j + d_j) - M = max_j ((z_j - M) + d_j)``: the winner's own term is its d exactly, so nothing cancels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, fold, unfold_count
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten


def _average(pool: Callable[..., Tensor]) -> Callable[..., Outcome]:
    def apply(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
        """The pooling of the difference itself."""
        difference = x.difference
        assert difference is not None
        if isinstance(difference, Channel) and difference.axis == 1:
            out = pool(difference.delta.contiguous(), *args, **kwargs)
            return Channel(1, difference.channels, out, call.output.base.shape)
        return Dense(unfold_count(pool(fold(difference.dense()), *args, **kwargs), difference.count))

    return apply


for _target in (
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
):
    rule(_target)(_average(_target))


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


@rule(aten.max_pool2d.default)
def max_pool2d(
    call: Call,
    x: Operand,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Outcome:
    """Maximum over windows of height and width."""
    difference = x.difference
    if x.base.dim() != 4 or difference is None:
        return fallback(call, x, kernel_size, stride, padding, dilation, ceil_mode)
    kernel, steps = _pair(kernel_size), _pair(stride or kernel_size)
    window = kernels.Window(kernel, steps, _pair(padding), _pair(dilation))
    if isinstance(difference, Channel) and difference.axis == 1:
        out = kernels.max_pool(difference, x.value, call.output, window)
        if out is None:
            out = max_change(difference.of(x.base), difference.delta, difference.of(call.output.base), window)
        return Channel(1, difference.channels, out, call.output.base.shape)
    dense = Dense(difference.dense())
    out = kernels.max_pool(dense, x.value, call.output, window)
    return Dense(max_change(x.base, dense.delta, call.output.base, window) if out is None else out)


def max_change(
    z: Num[Tensor, "*base h w"],
    d: Num[Tensor, "p *rest h w"],
    maximum: Num[Tensor, "*base h_out w_out"],
    window: kernels.Window,
) -> Num[Tensor, "p *rest h_out w_out"]:
    """The change of the maximum over windows of height and width, one kernel position after another."""
    height, width = maximum.shape[-2:]
    best: Tensor | None = None
    for row, column in itertools.product(range(window.kernel[0]), range(window.kernel[1])):
        gap = _shifted(z, row, column, height, width, window, -math.inf) - maximum
        candidate = gap + _shifted(d, row, column, height, width, window, 0.0)
        best = candidate if best is None else torch.maximum(best, candidate)
    assert best is not None
    return best


def _shifted(
    t: Num[Tensor, "*lead h w"], row: int, column: int, height: int, width: int, window: kernels.Window, fill: float
) -> Num[Tensor, "*lead {height} {width}"]:
    """Entry ``(row, column)`` of every window."""
    extent = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip((height, width), window.stride, window.kernel, window.dilation, strict=True)
    ]
    low = window.padding
    high = [max(0, e - p - n) for e, p, n in zip(extent, low, t.shape[-2:], strict=True)]
    if any(low) or any(high):
        t = F.pad(t, (low[1], high[1], low[0], high[0]), value=fill)
    top, left = row * window.dilation[0], column * window.dilation[1]
    rows = slice(top, top + (height - 1) * window.stride[0] + 1, window.stride[0])
    columns = slice(left, left + (width - 1) * window.stride[1] + 1, window.stride[1])
    return t[..., rows, columns]
