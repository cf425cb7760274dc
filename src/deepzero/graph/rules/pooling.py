"""Pooling.

Averages are linear. For maxima, with the base maximum M of a window,
``max_j (z_j + d_j) - M = max_j ((z_j - M) + d_j)``: the winner's own term is its d exactly, so nothing cancels.

Legend: p perturbations, h height, w width; lead: samples and channels, or one of both, or none; base, rest: the same of
base values and of differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int64, Num
from torch import Tensor
from torch.utils._pytree import tree_map

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Blocks, Channel, Dense, Difference, HalfDense, entries
from deepzero.graph.rules.base import in_order, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.shape import reshaped
from deepzero.graph.windows import Window

aten = torch.ops.aten


AVERAGES = (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.avg_pool2d.default)
"""Operations that may be the mean over whole images."""


def over_stack(stacked: Num[Tensor, "p ..."], spatial: int, pool: Callable[[Tensor], Any]) -> Any:
    """A pooling of the last ``spatial`` dimensions of ``[p, *lead, *spatial]``; there are at most two in ``lead``."""
    lead = stacked.shape[: stacked.dim() - spatial]
    shaped = stacked.unsqueeze(1) if len(lead) == 1 else stacked.flatten(0, -spatial - 2)
    out = pool(shaped.contiguous() if len(lead) < 3 else shaped)
    return tree_map(lambda t: t.reshape(*lead, *t.shape[2:]), out)


def _keeps(difference: Difference | None, spatial: int) -> bool:
    """True for a channel of a dimension that is not pooled."""
    return isinstance(difference, Channel) and difference.axis < len(difference.shape) - spatial


def is_whole_average(target: Any, args: Sequence[Any], kwargs: Any, size: torch.Size) -> bool:
    """True if an average is that of whole images, all places alike."""
    given = [tuple(a) if isinstance(a, Sequence) else (a, a) for a in args[:1]]
    if kwargs or not given:
        return False
    if target in AVERAGES[:2]:
        return given[0] == (1, 1)
    whole = given[0] * (2 // len(given[0])) == tuple(size)
    padding = [] if len(args) < 3 else args[2] if isinstance(args[2], Sequence) else [args[2]]
    return whole and target is aten.avg_pool2d.default and not any(padding) and len(args) < 6


def _side_by_side(
    delta: Num[Tensor, "p ..."], target: Any, args: Sequence[Any], kwargs: Any, out: torch.Size
) -> Window | None:
    """The window of an average of images whose samples are last in memory, if windows tile them; else None."""
    if target is not aten.avg_pool2d.default or kwargs or len(args) > 3 or delta.dim() != 4 or delta.stride(1) != 1:
        return None
    given = [*args, (), 0]
    window = Window.of(args[0], given[1], given[2] if len(args) > 2 else 0, 1)
    return window if window.tiles(delta.shape[2:], out) else None


def _average(delta: Num[Tensor, "p b h w"], window: Window, out: torch.Size) -> Num[Tensor, "p b h_out w_out"]:
    """Means over windows that tile, entry by entry: those of all samples are read side by side."""
    height, width = window.kernel
    first, *others = (window.entry(delta, y, x, out, 0.0) for y in range(height) for x in range(width))
    total = first.clone()
    for entry in others:
        total += entry
    return total.div_(height * width)


def _register_average(target: Any, spatial: int) -> None:
    @rule(target, blocks=True)
    def apply(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
        """The pooling of the difference itself."""
        blocks: Any = x.difference
        whole = x.base.dim() == 4 and is_whole_average(target, args, kwargs, x.base.shape[2:])
        if isinstance(blocks, Blocks) and whole:
            shape = call.output.base.shape
            return cast(Dense, blocks.each(lambda images: images.mean((2, 3), keepdim=True), shape))
        difference = in_order(x).difference
        assert difference is not None

        def pool(t: Tensor) -> Any:
            return target(t, *args, **kwargs)

        if isinstance(difference, Channel) and _keeps(difference, spatial):
            delta = difference.delta  # whose samples may be last in memory: a sum over places needs no copy
            spaces = call.output.base.shape[-spatial:]
            window = None if whole else _side_by_side(delta, target, args, kwargs, spaces)
            if window is not None:
                out = _average(delta, window, spaces)
            else:
                out = delta.mean((-2, -1), keepdim=True) if whole else over_stack(delta, spatial, pool)
            return Channel(difference.axis, difference.channels, out, call.output.base.shape)
        if whole and isinstance(difference, HalfDense):
            return Dense(difference.half.mean((-2, -1), keepdim=True, dtype=torch.float32).div_(difference.scale))
        return Dense(over_stack(difference.dense(), spatial, pool))


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
    return _on_images(call, x, Window.of(kernel_size, stride, padding, dilation), 2)


@rule(aten.max_pool1d.default)
def max_pool1d(
    call: Call,
    x: Operand,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Outcome:
    """Maximum over windows of the last dimension."""
    return _on_images(call, x, Window.of_line(kernel_size, stride, padding, dilation), 1)


def _images(shape: torch.Size, spatial: int) -> torch.Size:
    """The shape with all four dimensions: samples, channels, height, width."""
    lead, space = shape[: len(shape) - spatial], shape[len(shape) - spatial :]
    return torch.Size((*(1 for _ in range(2 - len(lead))), *lead, *(1 for _ in range(2 - spatial)), *space))


def _on_images(call: Call, x: Operand, window: Window, spatial: int) -> Outcome:
    difference, shape = x.difference, call.output.base.shape
    assert difference is not None
    if x.base.dim() == 4:
        return _max_pool(x.value, call.output, difference, window)

    def image(value: Value) -> Value:
        return Value(value.base.reshape(_images(value.base.shape, spatial)))

    value, maximum = call.memo("images", lambda: (image(x.value), image(call.output)))
    return reshaped(_max_pool(value, maximum, reshaped(difference, value.base.shape), window), shape)


def _max_pool(value: Value, maximum: Value, difference: Difference, window: Window) -> Difference:
    if isinstance(difference, Channel) and difference.axis == 1:
        out = kernels.on(difference.delta).max_pool(difference, value, maximum, window)
        if out is None:
            out = max_change(difference.of(value.base), difference.delta, difference.of(maximum.base), window)
        return Channel(1, difference.channels, out, maximum.base.shape)
    dense = Dense(difference.dense())
    out = kernels.on(dense.delta).max_pool(dense, value, maximum, window)
    return Dense(max_change(value.base, dense.delta, maximum.base, window) if out is None else out)


def max_change(
    z: Num[Tensor, "*base h w"],
    d: Num[Tensor, "p *rest h w"],
    maximum: Num[Tensor, "*base h_out w_out"],
    window: Window,
) -> Num[Tensor, "p *rest h_out w_out"]:
    """The change of the maximum over windows of height and width, one kernel position after another."""
    out = maximum.shape[-2:]
    best: Tensor | None = None
    for row, column in itertools.product(range(window.kernel[0]), range(window.kernel[1])):
        gap = window.entry(z, row, column, out, -math.inf) - maximum
        candidate = gap + window.entry(d, row, column, out, 0.0)
        best = candidate if best is None else torch.maximum(best, candidate)
    assert best is not None
    return best


def _winners(
    x: Operand, base: Sequence[Tensor], spatial: int, pool: Callable[[Tensor], Any]
) -> tuple[Difference, Difference]:
    """Changes of maxima and of the places they come from; the new winners are found in float64.

    With winner j of the perturbed window, the change is ``(z_j - M) + d_j``.
    """
    difference, (maximum, places) = x.difference, base
    assert difference is not None
    if isinstance(difference, Channel) and _keeps(difference, spatial):
        of, kept = difference.of, (difference.axis, difference.channels)
        change, moved = _new_winners(of(x.base), difference.delta, of(maximum), of(places), spatial, pool)
        return Channel(*kept, change, maximum.shape), Channel(*kept, moved, places.shape)
    bases = x.base.unsqueeze(0), maximum.unsqueeze(0), places.unsqueeze(0)
    change, moved = _new_winners(bases[0], difference.dense(), bases[1], bases[2], spatial, pool)
    return Dense(change), Dense(moved)


def _new_winners(
    z: Num[Tensor, "#p *lead_and_space"],
    d: Num[Tensor, "p ..."],
    maximum: Num[Tensor, "#p *lead_and_out"],
    places: Int64[Tensor, "#p *lead_and_out"],
    spatial: int,
    pool: Callable[[Tensor], Any],
) -> tuple[Num[Tensor, " p *lead_and_out"], Int64[Tensor, " p *lead_and_out"]]:
    winners = over_stack(z.double() + d.double(), spatial, pool)[1]
    index = winners.flatten(-spatial)
    own = d.flatten(-spatial).gather(-1, index)
    base = z.flatten(-spatial).expand(*index.shape[:-1], -1).gather(-1, index)
    change = (base - maximum.flatten(-spatial)) + own
    return change.reshape(winners.shape), winners - places


def _register_maxima(target: Any, spatial: int) -> None:
    @rule(target)
    def apply(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
        """Maxima and their places."""
        return _winners(x, call.output.base[:2], spatial, lambda t: target(t, *args, **kwargs))


for _n in (1, 2, 3):
    for _name in ("avg_pool{}d", "adaptive_avg_pool{}d", *(("_adaptive_avg_pool{}d",) if _n > 1 else ())):
        _register_average(getattr(aten, _name.format(_n)).default, _n)
    for _name in ("max_pool{}d_with_indices", "adaptive_max_pool{}d"):
        _register_maxima(getattr(aten, _name.format(_n)).default, _n)


@rule(aten.max_pool3d.default)
def max_pool3d(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
    """Maximum over windows of depth, height and width."""
    both = aten.max_pool3d_with_indices.default
    base = call.memo("maxima", lambda: both(x.base, *args, **kwargs))
    return _winners(x, base, 3, lambda t: both(t, *args, **kwargs))[0]


@rule(aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default)
def fractional_max_pool(call: Call, x: Operand, kernel: Any, out: Any, samples: Operand) -> Outcome:
    """Maxima over windows of drawn places, the same for all perturbations."""
    if x.difference is None or samples.difference is not None:
        return fallback(call, x, kernel, out, samples)
    spatial = samples.base.shape[-1]

    def pool(t: Tensor) -> Any:
        drawn = samples.base.to(t.dtype)
        lead = drawn.shape[:1] if x.base.dim() == spatial + 2 else (1,)
        repeated = drawn.expand(t.shape[0] // lead[0], *drawn.shape).flatten(0, 1)
        return call.node.target(t, kernel, out, repeated)

    dense = Operand(x.value, Dense(x.difference.dense()))
    return _winners(dense, call.output.base, spatial, pool)


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(call: Call, x: Operand, places: Operand, *args: Any) -> Outcome:
    """Values put back where they came from; places that differ are evaluated."""
    if x.difference is None or (places.difference is not None and bool(entries(places.difference).any())):
        return fallback(call, x, places, *args)
    spatial = 2 if call.node.target is aten.max_unpool2d.default else 3
    dense = x.difference.dense()
    beside = places.base.expand(dense.shape).flatten(0, dense.dim() - spatial - 2)
    out = call.node.target(dense.flatten(0, dense.dim() - spatial - 2), beside, *args)
    return Dense(out.reshape(dense.shape[0], *call.output.base.shape))
