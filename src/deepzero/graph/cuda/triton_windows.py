"""Shifted slices and maxima over windows, as Triton programs.

Legend: P perturbations, B samples, C channels (1 where each perturbation has one of its own), pixels = B x HO x WO.
A slice moves 8 bytes an entry (read and written once, in float32); a maximum reads its window of d and, from the cache,
of base values, and writes one entry. There is no arithmetic to speak of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepzero.graph.cuda.triton_convolution import pixel


@triton.jit
def shifted_slices(
    padded,
    features,
    first,
    second,
    values,
    out,
    pixels,
    H,
    W,
    HO,
    WO,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[p] = values[p] * padded[features[p], :, window]``; the window begins at tap ``(first[p], second[p])``."""
    p = tl.program_id(1).to(tl.int64)
    row, image, y, z = pixel(tl.program_id(0), BLOCK, HO, WO)
    source = padded + tl.load(features + p) * (pixels // (HO * WO)) * H * W
    h, w = y * SH + tl.load(first + p) * DH, z * SW + tl.load(second + p) * DW
    x = tl.load(source + (image * H + h) * W + w, mask=row < pixels, other=0.0)
    tl.store(out + p * pixels + row, x * tl.load(values + p), mask=row < pixels)


@triton.jit
def window_maxima(
    d,
    base,
    maximum,
    channels,
    out,
    pixels,
    H,
    W,
    HO,
    WO,
    C,
    OWN: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
):
    """``out = max (z - M + d)`` over windows: ``d [P, B, H, W, C]``, base values z without P.

    ``OWN``: C is 1, and z and M have all channels in front, of which each perturbation has one.
    """
    p, c = tl.program_id(1).to(tl.int64), tl.program_id(2) * BC + tl.arange(0, BC)
    row, image, y, x = pixel(tl.program_id(0), BLOCK, HO, WO)
    mask, size = (row < pixels)[:, None] & (c < C)[None, :], (pixels // (HO * WO)) * H * W
    own = tl.load(channels + p) if OWN else 0
    m = tl.load(maximum + own * pixels + row[:, None] * C + c[None, :], mask=mask, other=0.0)
    best = tl.full((BLOCK, BC), float("-inf"), m.dtype)
    for tap in tl.static_range(KH * KW):
        h, w = y * SH - PH + (tap // KW) * DH, x * SW - PW + (tap % KW) * DW
        there = mask & ((h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None]
        at = ((image * H + h) * W + w)[:, None] * C + c[None, :]
        z = tl.load(base + own * size + at, mask=there, other=float("-inf"))
        v = tl.load(d + p * size * C + at, mask=there, other=0.0)
        best = tl.maximum(best, (z - m) + v, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + p * pixels * C + row[:, None] * C + c[None, :], best, mask=mask)
