"""Pointwise functions, and functions of whole rows, as Triton programs.

Legend: P perturbations, C channels of base values (1 where differences are of all), n entries, rows of ``width``
entries. Each program reads its differences once and writes once, 8 bytes an entry in float32; base values come from the
cache, where another perturbation has just had them. A gelu does about 60 operations an entry, a softmax 40: on an H100
(3.0 TB/s, some 30 TFLOP/s outside of the matrix units) both stay below what the memory takes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from deepzero.graph import tails

RELU: tl.constexpr = tl.constexpr(0)
LEAKY_RELU: tl.constexpr = tl.constexpr(1)
SIGMOID: tl.constexpr = tl.constexpr(2)
TANH: tl.constexpr = tl.constexpr(3)
SILU: tl.constexpr = tl.constexpr(4)
GELU: tl.constexpr = tl.constexpr(5)
GELU_TANH: tl.constexpr = tl.constexpr(6)
"""Functions by number."""

OVERFLOW: tl.constexpr = tl.constexpr(10.0)
"""Above it the plain difference of exponentials cancels nothing, and expm1 may overflow where the result does not."""
REMAINS: tl.constexpr = tl.constexpr(tails.REMAINS)
SMALL: tl.constexpr = tl.constexpr(0.05)
"""Differences up to which the midpoint expansion of a Gauss interval has float32's last places."""


@triton.jit
def expm1(x):
    """``exp(x) - 1``: by its series where that would cancel."""
    series = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040)))))))
    return tl.where(tl.abs(x) < 0.35, series, tl.exp(x) - 1)


@triton.jit
def log1p(x):
    """``log(1 + x)``: twice the series of the inverse hyperbolic tangent of ``x / (2 + x)`` where x is small."""
    t = x / (2 + x)
    s = t * t
    series = 2 * t * (1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.log(1 + x))


@triton.jit
def logistic(x):
    """The sigmoid."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def logistic_change(z, d):
    """``expm1(d) s(z) s(-(z + d))``; for large d the plain difference, on the side where the values are small."""
    closed = expm1(tl.minimum(d, OVERFLOW, propagate_nan=tl.PropagateNan.ALL)) * logistic(z) * logistic(-(z + d))
    side = tl.where(z > 0, -1.0, 1.0)
    return tl.where(d > OVERFLOW, side * (logistic(side * (z + d)) - logistic(side * z)), closed)


@triton.jit
def gauss(x):
    """The normal distribution function."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gauss_interval(z, d):
    """``Phi(z + d) - Phi(z)``: a midpoint expansion for small d, else the difference in float64."""
    m = z + d / 2
    m2, d2 = m * m, d * d
    density = tl.exp(-m2 / 2) * 0.3989422804014327
    change = density * d * (1 + (m2 - 1) * d2 / 24 + (m2 * m2 - 6 * m2 + 3) * d2 * d2 / 1920)
    if tl.max(tl.abs(d)) > SMALL:
        wide = z.to(tl.float64)
        exact = gauss(wide + d.to(tl.float64)) - gauss(wide)
        change = tl.where(tl.abs(d) <= SMALL, change, exact.to(tl.float32))
    return change


@triton.jit
def relu_change(z, d):
    """``max(min(z, 0) + d, -max(z, 0))``."""
    return tl.maximum(tl.minimum(z, 0.0) + d, -tl.maximum(z, 0.0), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activation(d, base, channels, out, slope, n, FUNCTION: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr):
    """``f(z + d) - f(z)`` of ``d [P, n]`` and base values ``[C, n]``; ``OWN``: of the channel that is named."""
    p = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.load(channels + p) if OWN else 0
    z = tl.load(base + channel * n + at, mask=at < n, other=0.0)
    v = tl.load(d + p * n + at, mask=at < n, other=0.0)
    if FUNCTION == RELU:
        change = relu_change(z, v)
    elif FUNCTION == LEAKY_RELU:
        change = slope * v + (1 - slope) * relu_change(z, v)
    elif FUNCTION == SIGMOID:
        change = logistic_change(z, v)
    elif FUNCTION == TANH:
        change = 2 * logistic_change(2 * z, 2 * v)
    elif FUNCTION == SILU:
        change = v * logistic(z + v) + z * logistic_change(z, v)
    elif FUNCTION == GELU:
        change = v * gauss(z + v) + z * gauss_interval(z, v)
    else:
        k, c = 0.7978845608028654, 0.044715
        u = k * (z + c * z * z * z)
        du = k * (v + c * v * (3 * z * z + 3 * z * v + v * v))
        change = v * logistic(2 * (u + du)) + z * logistic_change(2 * u, 2 * du)
    tl.store(out + p * n + at, change, mask=at < n)


@triton.jit
def place(rows, width, channels, OWN: tl.constexpr, R: tl.constexpr, BW: tl.constexpr):
    """The places of a tile of rows in differences ``[P, rows, width]`` and in base values ``[C, rows, width]``."""
    p = tl.program_id(1).to(tl.int64)
    row, entry = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BW)
    channel = tl.load(channels + p) if OWN else p * 0
    mask = (row < rows)[:, None] & (entry < width)[None, :]
    inside = row.to(tl.int64)[:, None] * width + entry[None, :]
    return p, channel, row, mask, p * rows * width + inside, channel * rows * width + inside


@triton.jit
def normalize(
    d,
    centred,
    scale,
    weight,
    channels,
    out,
    rows,
    width,
    eps,
    MEAN: tl.constexpr,
    OWN: tl.constexpr,
    R: tl.constexpr,
    BW: tl.constexpr,
):
    """``weight ((c + u) / s' - c / s)`` of each row: ``u = d - mean(d)`` or d, ``s'^2 = s^2 + mean(u (2 c + u))``.

    Where little is left of s^2, s' is that of ``c + u``.
    """
    _, channel, row, mask, at, base = place(rows, width, channels, OWN, R, BW)
    u = tl.load(d + at, mask=mask, other=0.0)
    c = tl.load(centred + base, mask=mask, other=0.0)
    s = tl.load(scale + channel * rows + row, mask=row < rows, other=1.0)
    if MEAN:
        u = tl.where(mask, u - (tl.sum(u, 1) / width)[:, None], 0.0)
    dv = tl.sum(u * (2 * c + u), 1) / width
    left = tl.sum((c + u) * (c + u), 1) / width + eps
    new = tl.sqrt(tl.where(s * s + dv < REMAINS * s * s, left, s * s + dv))
    entry = tl.arange(0, BW)
    factor = tl.load(weight + entry, mask=entry < width, other=0.0)[None, :]
    tilt = -dv / (s * new * (s + new))
    tl.store(out + at, factor * (u / new[:, None] + c * tilt[:, None]), mask=mask)


@triton.jit
def normaliser(d, p, logs):
    """Change of each row's ``log sum exp``: ``log1p(sum p expm1(d))``; plainly where little is left of the sum."""
    terms = p * expm1(tl.minimum(d, OVERFLOW, propagate_nan=tl.PropagateNan.ALL))
    terms = tl.where(d > OVERFLOW, tl.exp(logs + d) - p, terms)
    growth = tl.sum(terms, 1)
    moved = logs + d
    top = tl.max(moved, 1)
    plain = top + tl.log(tl.sum(tl.exp(moved - top[:, None]), 1))
    return tl.where((growth < -0.5) | (growth > 1e6), plain, log1p(growth))


@triton.jit
def softmax(
    d,
    chances,
    logarithms,
    chosen,
    channels,
    out,
    rows,
    width,
    LOG: tl.constexpr,
    OWN: tl.constexpr,
    R: tl.constexpr,
    BW: tl.constexpr,
):
    """The change of each row's softmax, or of its logarithm; counted from the entry ``chosen [C, rows]``."""
    p, channel, row, mask, at, base = place(rows, width, channels, OWN, R, BW)
    v = tl.load(d + at, mask=mask, other=0.0)
    weight = tl.load(chances + base, mask=mask, other=0.0)
    logs = tl.load(logarithms + base, mask=mask, other=float("-inf"))
    logs = tl.where((row < rows)[:, None], logs, 0.0)
    pick = tl.load(chosen + channel * rows + row, mask=row < rows, other=0)
    v -= tl.load(d + (p * rows + row) * width + pick, mask=row < rows, other=0.0)[:, None]
    change = v - normaliser(tl.where(mask, v, 0.0), weight, logs)[:, None]
    if not LOG:
        closed = weight * expm1(tl.minimum(change, OVERFLOW, propagate_nan=tl.PropagateNan.ALL))
        change = tl.where(change > OVERFLOW, tl.exp(logs + change) - weight, closed)
    tl.store(out + at, change, mask=mask)


@triton.jit
def label_losses(
    d, chances, logarithms, labels, channels, out, rows, width, OWN: tl.constexpr, R: tl.constexpr, BW: tl.constexpr
):
    """The change of each row's ``-log softmax`` at its label: the normaliser's, of differences from the label's own."""
    p, channel, row, mask, at, base = place(rows, width, channels, OWN, R, BW)
    v = tl.load(d + at, mask=mask, other=0.0)
    weight = tl.load(chances + base, mask=mask, other=0.0)
    logs = tl.load(logarithms + base, mask=mask, other=float("-inf"))
    logs = tl.where((row < rows)[:, None], logs, 0.0)
    label = tl.load(labels + channel * rows + row, mask=row < rows, other=0)
    v -= tl.load(d + (p * rows + row) * width + label, mask=row < rows, other=0.0)[:, None]
    tl.store(out + p * rows + row, normaliser(tl.where(mask, v, 0.0), weight, logs), mask=row < rows)
