"""Convolutions of stacked images in channels-last memory, as Triton programs.

Legend: P perturbations, rows = B x HO x WO output pixels of one perturbation, C input and O output channels, T taps.
Per perturbation the least that must move is the input once and the output once: ``4 B (H W C + HO WO O)`` bytes in
float32, half of it in float16; a dense one does ``2 T C O rows`` operations, a channel one ``2 T O rows``. On an H100
(3.35 TB/s) a layer of the first stage of ResNet-20 at batch 512, with 33.5 MB on either side, has a floor of 20 us by
bytes in float32, and of 10 us in float16; its 2.4 GFLOP take 5 us in TF32. The input is read once for each tap, though,
and the pipelined copies to shared memory skip the L1 cache unless they are told not to (``.ca``): L2 is not nine times
as fast as memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepzero.graph.cuda.triton_normalization import normalized, rounded_to_tf32, shrunk_relu, store_sums, stored

RAW: tl.constexpr = tl.constexpr(0)
SUMS: tl.constexpr = tl.constexpr(1)
RELU: tl.constexpr = tl.constexpr(2)
"""Outcomes of the convolution of a channel: itself, the sums that batch norm asks of it, or what batch norm and relu
make of it."""


@triton.jit
def pixel(tile, BLOCK: tl.constexpr, HO, WO):
    """Output pixels of a tile: their number, image, row and column."""
    row = tile * BLOCK + tl.arange(0, BLOCK)
    image = row // (HO * WO)
    rest = row - image * (HO * WO)
    return row, image, rest // WO, rest % WO


@triton.jit
def convolve_dense(
    x,
    taps,
    centred,
    out,
    partial,
    unit,
    count,
    rows,
    tiles,
    H,
    W,
    HO,
    WO,
    C,
    O,
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
    NC: tl.constexpr,
    BO: tl.constexpr,
    GROUP: tl.constexpr,
    SUMMED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x [P, B, H, W, C]`` with ``taps [T, O, C]`` to ``out [P, B, HO, WO, O]``: a product for each tap.

    If ``SUMMED``, ``partial [P, tiles, 3, O]`` gets the sums of what is written, times ``unit``, that batch norm asks
    for. A program makes the tile of GROUP perturbations, so that its base values ``centred [rows, O]`` stay in a cache.
    Nothing is carried from one to the next: kept in registers, it would leave room for fewer programs.
    """
    tile, first = tl.program_id(0), tl.program_id(1) * GROUP
    row, image, y, z = pixel(tile, BLOCK, HO, WO)
    inside, c, o = row < rows, tl.arange(0, BC), tl.program_id(2) * BO + tl.arange(0, BO)
    mask, at = inside[:, None] & (o < O)[None, :], row[:, None] * O + o[None, :]
    for i in tl.range(0, GROUP, num_stages=1, disable_licm=True):
        p = (first + i).to(tl.int64)
        if p < count:
            source = x + p * (rows // (HO * WO)) * H * W * C
            total = tl.zeros((BLOCK, BO), dtype=tl.float32)
            for k in tl.range(0, KH * KW * NC, num_stages=3):
                tap = k // NC
                channel = c + (k % NC) * BC
                h = y * SH - PH + (tap // KW) * DH
                w = z * SW - PW + (tap % KW) * DW
                there = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                own = source + (((image * H + h) * W + w) * C)[:, None] + channel[None, :]
                a = tl.load(own, mask=there[:, None] & (channel < C)[None, :], other=0.0, cache_modifier=".ca")
                b = tl.load(
                    taps + (tap * O + o)[:, None] * C + channel[None, :],
                    mask=(o < O)[:, None] & (channel < C)[None, :],
                    other=0.0,
                )
                total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
            kept = stored(total, out.dtype.element_ty)
            tl.store(out + p * rows * O + at, kept, mask=mask)
            if SUMMED:
                base = tl.load(centred + at, mask=mask, other=0.0)
                store_sums(partial, p * tiles + tile, o, O, kept.to(tl.float32) * unit, base)


@triton.jit
def convolve_channel(
    x,
    filters,
    channels,
    centred,
    before,
    made,
    out,
    scale,
    count,
    rows,
    tiles,
    H,
    W,
    HO,
    WO,
    O,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK: tl.constexpr,
    BO: tl.constexpr,
    GROUP: tl.constexpr,
    OUTCOME: tl.constexpr,
    TF32: tl.constexpr,
):
    """``x [P, B, H, W]``, each with the filters ``[T, O]`` of its own channel: what becomes of them, to ``out``.

    That is the convolution d, times ``scale``; or its sums over tiles, ``out [P, tiles, 3, O]``; or, with coefficients
    ``made`` of these, ``scale (relu(y + v) - relu(y))`` with ``v = slope d + tilt c + shift``. To convolve a channel
    twice is less than to write all channels and to read them again.
    """
    tile, first = tl.program_id(0), tl.program_id(1) * GROUP
    row, image, y, z = pixel(tile, BLOCK, HO, WO)
    inside, o = row < rows, tl.program_id(2) * BO + tl.arange(0, BO)
    mask, at = inside[:, None] & (o < O)[None, :], row[:, None] * O + o[None, :]
    for i in tl.range(0, GROUP, num_stages=1, disable_licm=True):
        p = (first + i).to(tl.int64)
        if p < count:
            source = x + p * (rows // (HO * WO)) * H * W
            own = filters + tl.load(channels + p) * (KH * KW * O) + o
            total = tl.zeros((BLOCK, BO), dtype=tl.float32)
            for tap in tl.range(0, KH * KW, num_stages=1):
                h = y * SH - PH + (tap // KW) * DH
                w = z * SW - PW + (tap % KW) * DW
                there = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                a = tl.load(source + (image * H + h) * W + w, mask=there, other=0.0)
                total += a[:, None] * tl.load(own + tap * O, mask=o < O, other=0.0)[None, :]
            if OUTCOME != RAW:
                base = tl.load(centred + at, mask=mask, other=0.0)
            if OUTCOME == SUMS:
                store_sums(out, p * tiles + tile, o, O, total, base)
            else:
                if OUTCOME == RELU:
                    pre = tl.load(before + at, mask=mask, other=0.0)
                    total = shrunk_relu(normalized(made, p, o, O, total, base), pre)
                total *= scale
                if TF32:
                    total = rounded_to_tf32(total)
                tl.store(out + p * rows * O + at, stored(total, out.dtype.element_ty), mask=mask)
