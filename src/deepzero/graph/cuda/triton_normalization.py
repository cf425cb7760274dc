"""Batch norm, a residual sum and relu in two passes, as Triton programs: sums over tiles, and what is made of them.

Legend: P perturbations, rows = samples x positions, C channels; tiles of BLOCK rows. A program keeps the base values of
its tile for up to GROUP perturbations, so that they cross the memory bus once in a while only. The least that must move
for each perturbation is d, twice read and once written: 12 bytes an entry in float32, 6 in float16, and 4 or 2 more for
a residual difference. Behind a convolution of ``triton_convolution`` the first reading falls away: that hands on its
sums. On an H100 (3.35 TB/s) the other two take 20 us for the first stage of ResNet-20 at batch 512 in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepzero.graph import tails

NONE: tl.constexpr = tl.constexpr(0)
DENSE: tl.constexpr = tl.constexpr(1)
CHANNEL: tl.constexpr = tl.constexpr(2)
"""Kinds of residual difference."""


LARGEST: tl.constexpr = tl.constexpr(65504.0)
"""The largest number of float16."""
REMAINS: tl.constexpr = tl.constexpr(tails.REMAINS)


@triton.jit
def stored(value, dtype: tl.constexpr):
    """The float32 values as memory of a dtype holds them; a NaN where float16 holds none."""
    if dtype == tl.float16:
        value = tl.where(tl.abs(value) > LARGEST, float("nan"), value)
    return value.to(dtype)


@triton.jit
def shrunk_relu(v, y):
    """``relu(y + v) - relu(y) = max(v + min(y, 0), -max(y, 0))``; a NaN stays one."""
    return tl.maximum(v + tl.minimum(y, 0.0), -tl.maximum(y, 0.0), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rounded_to_tf32(value):
    """The nearest number of 10 bits after the point: a matrix unit would cut the rest off."""
    return ((value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def store_sums(partial, at, c, C, v, base):
    """``partial[at, :, c]``: sums of ``v, base v, v^2`` over the rows of a tile."""
    to = partial + at * 3 * C + c
    tl.store(to, tl.sum(v, 0), mask=c < C)
    tl.store(to + C, tl.sum(v * base, 0), mask=c < C)
    tl.store(to + 2 * C, tl.sum(v * v, 0), mask=c < C)


@triton.jit
def normalized(made, p, c, C, v, base):
    """``slope v + tilt base + shift`` with the coefficients ``made [P, 3, C]`` of channels c."""
    own = made + p * 3 * C + c
    slope = tl.load(own, mask=c < C, other=0.0)[None, :]
    tilt = tl.load(own + C, mask=c < C, other=0.0)[None, :]
    shift = tl.load(own + 2 * C, mask=c < C, other=0.0)[None, :]
    return slope * v + (tilt * base + shift)


@triton.jit
def dense_sums(
    d, centred, partial, unit, count, rows, C, tiles, BLOCK: tl.constexpr, BC: tl.constexpr, GROUP: tl.constexpr
):
    """``partial[p, tile, :, c]``: sums of ``d, c d, d^2`` over a tile's rows; ``d [P, rows, C]`` times ``unit``."""
    tile, first = tl.program_id(0), tl.program_id(1) * GROUP
    row, c = tile * BLOCK + tl.arange(0, BLOCK), tl.program_id(2) * BC + tl.arange(0, BC)
    mask, at = (row < rows)[:, None] & (c < C)[None, :], row[:, None] * C + c[None, :]
    base = tl.load(centred + at, mask=mask, other=0.0)
    for i in range(GROUP):
        p = (first + i).to(tl.int64)
        if p < count:
            v = tl.load(d + p * rows * C + at, mask=mask, other=0.0).to(tl.float32) * unit
            store_sums(partial, p * tiles + tile, c, C, v, base)


@triton.jit
def channel_sums(d, centred, channels, partial, rows, tiles, BLOCK: tl.constexpr):
    """The same for one channel each: ``d [P, rows]``, base values ``[C, rows]``, ``partial [P, tiles, 3]``."""
    p, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    row = tile * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(d + p * rows + row, mask=row < rows, other=0.0)
    base = tl.load(centred + tl.load(channels + p) * rows + row, mask=row < rows, other=0.0)
    to = partial + (p * tiles + tile) * 3
    tl.store(to, tl.sum(v, 0))
    tl.store(to + 1, tl.sum(v * base, 0))
    tl.store(to + 2, tl.sum(v * v, 0))


@triton.jit
def coefficients(
    partial,
    channels,
    scale,
    gamma,
    residue,
    out,
    rows,
    C,
    tiles,
    OWN: tl.constexpr,
    BT: tl.constexpr,
    BATCHES: tl.constexpr,
    BC: tl.constexpr,
):
    """Slope, tilt and shift ``[P, 3, C]`` of ``v = slope d + tilt c + shift``, from the sums over all tiles.

    With the mean change ``dv`` of the variance and ``s' = sqrt(s^2 + dv)``: slope ``1/s'``, tilt ``1/s' - 1/s``, shift
    ``-slope mean(d)``, times gamma; in float64, and NaN where less than REMAINS of ``s^2`` remains. ``OWN``: one
    channel a perturbation, named by ``channels``.
    """
    p, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BC + tl.arange(0, BC)
    first, cross, square = tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64)
    for batch in range(BATCHES):
        t = batch * BT + tl.arange(0, BT)
        mask = (t < tiles)[:, None] & (c < C)[None, :]
        at = partial + (p * tiles + t)[:, None] * 3 * C + c[None, :]
        first += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), 0)
        cross += tl.sum(tl.load(at + C, mask=mask, other=0.0).to(tl.float64), 0)
        square += tl.sum(tl.load(at + 2 * C, mask=mask, other=0.0).to(tl.float64), 0)
    own = tl.load(channels + p) + c if OWN else c
    s = tl.load(scale + own, mask=c < C, other=1.0).to(tl.float64)
    mean = first / rows
    dv = 2 * (cross / rows - mean * tl.load(residue + own, mask=c < C, other=0.0)) + (square / rows - mean * mean)
    new = tl.sqrt(tl.where(s * s + dv < REMAINS * s * s, float("nan"), s * s + dv))
    g = tl.load(gamma + own, mask=c < C, other=0.0).to(tl.float64)
    slope = g / new
    to = out + p * 3 * C + c
    tl.store(to, slope.to(tl.float32), mask=c < C)
    tl.store(to + C, (-g * dv / (s * new * (s + new))).to(tl.float32), mask=c < C)
    tl.store(to + 2 * C, (-slope * mean).to(tl.float32), mask=c < C)


@triton.jit
def dense_relu(
    d,
    extra,
    channels,
    centred,
    before,
    made,
    out,
    unit,
    extra_unit,
    scale,
    count,
    rows,
    C,
    EXTRA: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK: tl.constexpr,
    BC: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out = scale (relu(y + v) - relu(y))`` with ``v = slope d + tilt c + shift + extra`` over all channels.

    ``extra [P, rows, C]``, or ``[P, rows]`` on the channels ``channels``, times ``extra_unit``. With ``TF32`` what is
    written is rounded to what a product will read of it.
    """
    tile, first = tl.program_id(0), tl.program_id(1) * GROUP
    row, c = tile * BLOCK + tl.arange(0, BLOCK), tl.program_id(2) * BC + tl.arange(0, BC)
    mask, at = (row < rows)[:, None] & (c < C)[None, :], row[:, None] * C + c[None, :]
    base = tl.load(centred + at, mask=mask, other=0.0)
    y = tl.load(before + at, mask=mask, other=0.0)
    for i in range(GROUP):
        p = (first + i).to(tl.int64)
        if p < count:
            v = tl.load(d + p * rows * C + at, mask=mask, other=0.0).to(tl.float32) * unit
            v = normalized(made, p, c, C, v, base)
            if EXTRA == DENSE:
                v += tl.load(extra + p * rows * C + at, mask=mask, other=0.0).to(tl.float32) * extra_unit
            if EXTRA == CHANNEL:
                more = tl.load(extra + p * rows + row, mask=row < rows, other=0.0)
                v += tl.where((c == tl.load(channels + p))[None, :], more[:, None], 0.0)
            result = shrunk_relu(v, y) * scale
            if TF32:
                result = rounded_to_tf32(result)
            tl.store(out + p * rows * C + at, stored(result, out.dtype.element_ty), mask=mask)


@triton.jit
def channel_relu(d, centred, before, channels, made, out, rows, BLOCK: tl.constexpr):
    """The same for one channel of each perturbation: ``d [P, rows]``, base values ``[C, rows]``, no residual."""
    p = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(channels + p) * rows + row
    base = tl.load(centred + own, mask=row < rows, other=0.0)
    y = tl.load(before + own, mask=row < rows, other=0.0)
    v = tl.load(d + p * rows + row, mask=row < rows, other=0.0)
    v = tl.load(made + p * 3) * v + (tl.load(made + p * 3 + 1) * base + tl.load(made + p * 3 + 2))
    tl.store(out + p * rows + row, shrunk_relu(v, y), mask=row < rows)
