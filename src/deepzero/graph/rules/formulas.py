"""Changes of real functions in cancellation-free form: each gives ``f(z + d) - f(z)`` from ``z`` and ``d``.

Where a closed form would overflow or does not exist, the plain difference is taken, in float64 unless it cannot cancel.

Legend: entries: those of a value that differ, in whatever shape; base values z and differences d broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Num
from torch import Tensor

from deepzero.graph.tails import REMAINS

Entries = Num[Tensor, "*#entries"]
"""Base values or differences at the entries that differ."""

OVERFLOW = 10.0
"""Above it the plain difference of exponentials cancels nothing, and expm1 may overflow where the result does not."""


def gap(a: Entries, b: Entries | float) -> Entries:
    """``a - b``, 0 where both are the same infinity."""
    return torch.where(a == b, 0, a - b)


def within(d: Entries, low: float, high: float) -> bool:
    """True if all entries lie in an interval, bounds included, and that is known without waiting for a GPU."""
    if d.numel() == 0:
        return True
    if d.device.type != "cpu":
        return False
    smallest, largest = torch.aminmax(d)
    return not bool((smallest < low) | (largest > high))


def relu(z: Entries, d: Entries) -> Entries:
    """``max(z + d, 0) - max(z, 0) = max(min(z, 0) + d, -max(z, 0))``, where one of both bounds of z is 0."""
    return torch.maximum(z.clamp(max=0) + d, -z.clamp(min=0))


def absolute(z: Entries, d: Entries) -> Entries:
    """``|z + d| - |z|``: ``d`` (or ``-d``) up to the kink, and the way back from there.

    Complex: ``Re(conj(d) (2 z + d)) / (|z + d| + |z|)``.
    """
    if z.is_complex():
        return quotient((d.conj() * (2 * z + d)).real, (z + d).abs() + z.abs())
    along = torch.where(z < 0, -1, 1).to(z.dtype) * d
    return torch.maximum(along, -2 * z.abs() - along)


def quotient(change: Entries, divisor: Entries) -> Entries:
    """``change / divisor``, 0 where nothing changes."""
    return torch.where(change == 0, 0, change / divisor)


def changed_root(root: Entries, change: Entries, left: Callable[[], Entries]) -> Entries:
    """``sqrt(root^2 + change)``, or ``sqrt(left())`` where next to nothing is left of the square.

    There the sum has lost its digits; ``left`` gives it from the values that it is of.
    """
    square = root.square()
    changed, least = square + change, REMAINS * square
    if within(changed - least, 0, math.inf):
        return changed.sqrt()
    return torch.where(changed < least, left(), changed).sqrt()


def clamp(z: Entries, d: Entries, low: float, high: float) -> Entries:
    """Of ``clamp(z, low, high)`` with fixed bounds: the distance to what is clamped off, clamped likewise."""
    inside = z.clamp(low, high)
    return (gap(z, inside) + d).clamp(low - inside, high - inside)


def sigmoid(z: Entries, d: Entries) -> Entries:
    """``expm1(d) s(-(z + d)) s(z)``; where d is large and expm1 could overflow, the plain difference.

    That is taken on the side where the values are small: of ``-s(-z)`` for positive z.
    """
    if within(d, -math.inf, OVERFLOW):
        return torch.expm1(d) * torch.sigmoid(z) * torch.sigmoid(-(z + d))
    closed = torch.expm1(d.clamp(max=OVERFLOW)) * torch.sigmoid(z) * torch.sigmoid(-(z + d))
    side = torch.where(z > 0, -1, 1).to(z.dtype)
    plain = side * (torch.sigmoid(side * (z + d)) - torch.sigmoid(side * z))
    return torch.where(d > OVERFLOW, plain, closed)


def tanh(z: Entries, d: Entries) -> Entries:
    """``2 s(2 z) - 1`` with s the sigmoid, which holds in the tails too."""
    return 2 * sigmoid(2 * z, 2 * d)


def exp(z: Entries, d: Entries) -> Entries:
    """``exp(z) expm1(d)``; the plain difference where d is large and expm1 could overflow."""
    if within(d, -math.inf, OVERFLOW):
        return torch.exp(z) * torch.expm1(d)
    closed = torch.exp(z) * torch.expm1(d.clamp(max=OVERFLOW))
    return torch.where(d > OVERFLOW, torch.exp(z + d) - torch.exp(z), closed)


def exp2(z: Entries, d: Entries) -> Entries:
    """``2^z expm1(d log 2)``, guarded as :func:`exp` is."""
    closed = torch.exp2(z) * torch.expm1(d.clamp(max=OVERFLOW) * math.log(2))
    return torch.where(d > OVERFLOW, torch.exp2(z + d) - torch.exp2(z), closed)


def log(z: Entries, d: Entries) -> Entries:
    """``log1p(d / z)``; ``log((z + d) / z)`` where the sum is at most half of z, and log1p would amplify rounding."""
    ratio = d / z
    change = torch.where(ratio < -0.5, torch.log((z + d) / z), torch.log1p(ratio))
    return torch.where(d == 0, 0, change)


def log1p(z: Entries, d: Entries) -> Entries:
    """``log1p(d / (1 + z))``."""
    return log(1 + z, d)


def sqrt(z: Entries, d: Entries) -> Entries:
    """With r and r' the roots before and after: ``d / (r + r')``."""
    return quotient(d, torch.sqrt(z + d) + torch.sqrt(z))


def rsqrt(z: Entries, d: Entries) -> Entries:
    """With ``r = sqrt(z)`` and ``r' = sqrt(z + d)``: ``-d / (r r' (r + r'))``."""
    before, after = torch.sqrt(z), torch.sqrt(z + d)
    return -quotient(quotient(d, before) / after, before + after)


def reciprocal(z: Entries, d: Entries) -> Entries:
    """``-d / (z (z + d))``."""
    return -quotient(d, z) / (z + d)


def square(z: Entries, d: Entries) -> Entries:
    """``d (2 z + d)``."""
    return d * (2 * z + d)


def cube(z: Entries, d: Entries) -> Entries:
    """``d (3 z (z + d) + d^2)``."""
    return d * (3 * z * (z + d) + d * d)


def power(z: Entries, d: Entries, exponent: float) -> Entries:
    """Of ``z^e``: ``z^e expm1(e log(1 + d/z))`` where z keeps its sign and the change is not large.

    Elsewhere the plain difference in float64: it cancels only where z and z + d are opposite and nearly equal.
    """
    growth = exponent * log(z, d)
    signed = (z > 0) if exponent != round(exponent) else (z != 0)
    closed = signed & (growth.abs() < 1)
    small = z.pow(exponent) * torch.expm1(growth)
    return small if bool(closed.all()) else torch.where(closed, small, _plain_power(z, d, exponent).to(small.dtype))


def _plain_power(z: Entries, d: Entries, exponent: float) -> Entries:
    wide = z.double()
    after, before = (wide + d).pow(exponent), wide.pow(exponent)
    return gap(after, before)


def sin(z: Entries, d: Entries) -> Entries:
    """With the midpoint m and the sine s of ``d/2``: ``2 s cos(m)``."""
    return 2 * torch.cos(z + d / 2) * torch.sin(d / 2)


def cos(z: Entries, d: Entries) -> Entries:
    """``-2 sin(z + d/2) sin(d/2)``."""
    return -2 * torch.sin(z + d / 2) * torch.sin(d / 2)


def tan(z: Entries, d: Entries) -> Entries:
    """``sin d / (cos z cos(z + d))``."""
    return torch.sin(d) / (torch.cos(z) * torch.cos(z + d))


def sinh(z: Entries, d: Entries) -> Entries:
    """With the midpoint m and the hyperbolic sine s of ``d/2``: ``2 s cosh(m)``."""
    return 2 * torch.cosh(z + d / 2) * torch.sinh(d / 2)


def cosh(z: Entries, d: Entries) -> Entries:
    """``2 sinh(z + d/2) sinh(d/2)``."""
    return 2 * torch.sinh(z + d / 2) * torch.sinh(d / 2)


def atan(z: Entries, d: Entries) -> Entries:
    """The angle between the directions ``(1, z)`` and ``(1, z + d)``: ``atan2(d, 1 + z (z + d))``."""
    return torch.atan2(d, 1 + z * (z + d))


def softplus(z: Entries, d: Entries) -> Entries:
    """Of ``log(1 + exp(z))``: ``log1p(s(z) expm1(d))``.

    For large d the plain difference; where z and z + d are positive, of what is above the ramp: ``d`` plus the change
    of ``log(1 + exp(-z))``.
    """
    if within(d, -1, 1):
        return torch.log1p(torch.sigmoid(z) * torch.expm1(d))
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    closed = torch.log1p(torch.sigmoid(z) * torch.expm1(d.clamp(-1, 1)))
    ramp = (z > 0) & (z + d > 0)
    before, after = torch.where(ramp, -z, z), torch.where(ramp, -z - d, z + d)
    plain = torch.logaddexp(after, zero) - torch.logaddexp(before, zero) + torch.where(ramp, d, 0)
    return torch.where(d.abs() > 1, plain, closed)


def silu(z: Entries, d: Entries) -> Entries:
    """``d * s(z + d) + z * (s(z + d) - s(z))``."""
    return d * torch.sigmoid(z + d) + z * sigmoid(z, d)


def mish(z: Entries, d: Entries) -> Entries:
    """``z tanh(u(z))`` with ``u = softplus(z)``."""
    u, du = torch.logaddexp(z, torch.zeros((), dtype=z.dtype, device=z.device)), softplus(z, d)
    return d * torch.tanh(u + du) + z * tanh(u, du)


def elu(z: Entries, d: Entries, alpha: float, scale: float, input_scale: float) -> Entries:
    """``scale (relu(z) + alpha expm1(input_scale min(z, 0)))``."""
    ramp = relu(z, d)
    return scale * (ramp + alpha * exp(input_scale * z.clamp(max=0), input_scale * (d - ramp)))


def _normal_cdf(z: Entries) -> Entries:
    """``Phi(z)``, by erfc, which holds in the lower tail."""
    above: Tensor = torch.special.erfc(-math.sqrt(0.5) * z)
    return 0.5 * above


def gauss_interval(z: Entries, d: Entries) -> Entries:
    """``Phi(z + d) - Phi(z)``: a midpoint expansion for small d, the difference (in float64) otherwise.

    With m the midpoint and phi the normal density, the integral of phi over an interval of length d around m is
    ``phi(m) * d * (1 + (m^2 - 1) d^2/24 + (m^4 - 6 m^2 + 3) d^4/1920 + ...)``. The plain difference is taken on the
    side where Phi is small: of ``-Phi(-z)`` for positive z.
    """
    m = z + d / 2
    m2, d2 = m * m, d * d
    density = torch.exp(-m2 / 2) * (1 / math.sqrt(2 * math.pi))
    series = density * d * (1 + (m2 - 1) * d2 / 24 + (m2 * m2 - 6 * m2 + 3) * d2 * d2 / 1920)
    limit = 0.05 if d.dtype == torch.float32 else 0.002
    if within(d, -limit, limit):
        return series
    wide_z, wide_d = z.double(), d.double()
    side = torch.where(wide_z > 0, -1.0, 1.0)
    exact = side * (_normal_cdf(side * (wide_z + wide_d)) - _normal_cdf(side * wide_z))
    return torch.where(d.abs() <= limit, series, exact.to(d.dtype))


def erf(z: Entries, d: Entries) -> Entries:
    """``2 Phi(sqrt(2) z) - 1``."""
    return 2 * gauss_interval(math.sqrt(2) * z, math.sqrt(2) * d)


def gelu(z: Entries, d: Entries) -> Entries:
    """Exact gelu ``z * Phi(z)``: ``d * Phi(z + d) + z * (Phi(z + d) - Phi(z))``."""
    return d * _normal_cdf(z + d) + z * gauss_interval(z, d)


def gelu_tanh(z: Entries, d: Entries) -> Entries:
    """The tanh approximation of gelu, ``z/2 * (1 + tanh(u)) = z s(2 u)`` with ``u = sqrt(2/pi) (z + 0.044715 z^3)``."""
    k, c = math.sqrt(2 / math.pi), 0.044715
    u = k * (z + c * z**3)
    du = k * (d + c * d * (3 * z * z + 3 * z * d + d * d))
    return d * torch.sigmoid(2 * (u + du)) + z * sigmoid(2 * u, 2 * du)


def leaky_relu(z: Entries, d: Entries, slope: float) -> Entries:
    """``slope * d + (1 - slope) * (relu(z + d) - relu(z))``."""
    return slope * d + (1 - slope) * relu(z, d)


def hardsigmoid(z: Entries, d: Entries) -> Entries:
    """``clamp(z + 3, 0, 6) / 6``."""
    return clamp(z, d, -3, 3) / 6


def hardswish(z: Entries, d: Entries) -> Entries:
    """``z h(z)`` with h the hard sigmoid: ``d h(z + d) + z (h(z + d) - h(z))``."""
    return d * ((z + d).clamp(-3, 3) + 3) / 6 + z * hardsigmoid(z, d)


def huber(e: Entries, d: Entries, delta: float) -> Entries:
    """Huber's function ``c e - c^2/2`` with ``c = clamp(e, -delta, delta)``: ``c' d + dc (e - c - dc/2)``."""
    c, dc = e.clamp(-delta, delta), clamp(e, d, -delta, delta)
    return (c + dc) * d + dc * (gap(e, c) - dc / 2)
