"""Fourier transforms: linear, so they act on the difference itself. The dimensions not transformed are left alone.

Legend: p perturbations; lead: dimensions that are not transformed, such as samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, difference_dtype
from deepzero.graph.rules.base import map_delta, normal_dim, rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten


def _through(call: Call, x: Operand, dims: Sequence[int], transform: Callable[[Tensor, list[int]], Tensor]) -> Outcome:
    """``transform`` of the difference over ``dims`` of the base value, which it is given counted from the back."""
    difference, ndim = x.difference, x.base.dim()
    assert difference is not None
    axes = [normal_dim(d, ndim) for d in dims]
    behind = [a - ndim for a in axes]
    if not (x.base.is_floating_point() or x.base.is_complex()):
        difference = map_delta(difference, lambda d: d.to(difference_dtype(call.output.base.dtype)).real)
    if isinstance(difference, Channel) and difference.axis not in axes:
        place = difference.axis + 1
        out = transform(difference.delta.unsqueeze(place), behind).squeeze(place)
        return Channel(difference.axis, difference.channels, out, call.output.base.shape)
    return Dense(transform(difference.dense(), behind))


def _one_dimension(target: Any) -> None:
    @rule(target)
    def apply(call: Call, x: Operand, n: int | None = None, dim: int = -1, norm: str | None = None) -> Outcome:
        """Along one dimension."""
        return _through(call, x, [dim], lambda d, dims: target(d, n, dims[0], norm))


def _dimensions(target: Any, default: tuple[int, ...] | None) -> None:
    @rule(target)
    def apply(call: Call, x: Operand, s: Any = None, dim: Any = default, norm: str | None = None) -> Outcome:
        """Along several dimensions: the last ones of ``s`` if only sizes are given, all if nothing is."""
        ndim = x.base.dim()
        dims = dim if dim is not None else range(ndim - len(s) if s is not None else 0, ndim)
        return _through(call, x, list(dims), lambda d, behind: target(d, s, behind, norm))


for _name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    _one_dimension(getattr(aten, f"fft_{_name}").default)
for _name in ("fft", "ifft", "rfft", "irfft"):
    _dimensions(getattr(aten, f"fft_{_name}2").default, (-2, -1))
    _dimensions(getattr(aten, f"fft_{_name}n").default, None)


@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default)
def shift(call: Call, x: Operand, dim: Any = None) -> Outcome:
    """Halves of dimensions exchanged."""
    ndim = x.base.dim()
    dims = range(ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return _through(call, x, list(dims), call.node.target)


@rule(aten.stft.default)
def stft(call: Call, x: Operand, *options: Any) -> Outcome:
    """Short-time transform of signals ``[time]`` or ``[batch, time]``, not centred (padding is an operation before)."""
    return _short_time(call, x, 1, *options)


@rule(aten.istft.default)
def istft(call: Call, x: Operand, *options: Any) -> Outcome:
    """The inverse of the short-time transform, of ``[frequency, frame]`` or ``[batch, frequency, frame]``."""
    return _short_time(call, x, 2, *options)


def _short_time(
    call: Call,
    x: Operand,
    dims: int,
    n_fft: int,
    hop: int | None = None,
    length: int | None = None,
    window: Any = None,
    *options: Any,
) -> Outcome:
    """The transform of the difference itself, over its last ``dims`` dimensions; all others are samples."""
    if window is not None and window.difference is not None:
        return fallback(call, x, n_fft, hop, length, window, *options)
    assert x.difference is not None
    base = None if window is None else window.base
    delta = x.difference.dense()
    out = call.node.target(delta.reshape(-1, *delta.shape[-dims:]), n_fft, hop, length, base, *options)
    return Dense(out.reshape(*delta.shape[:-dims], *out.shape[1:]))
