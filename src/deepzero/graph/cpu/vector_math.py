"""Elementary functions of one number, written so that a compiled loop over them is vectorised.

They branch nowhere: exponents are put together from bits, and limits are selections. ``exp``, ``expm1``, ``log1p`` and
``sigmoid`` take float32 or float64 and give the same, within about 2 units in the last place, NaN for NaN, and the
limits at infinity. They can be called in compiled loops alone; numba puts the version of the argument's type in.

An exponential is that of ``r = x - n log 2``, ``|r| <= log(2) / 2``, times ``2^n``; a logarithm is that of a number
between ``sqrt(1/2)`` and ``sqrt(2)``, plus ``e log 2``. The polynomials in between are Chebyshev expansions of
``(e^r - 1 - r) / r^2`` and ``(log(1 + m) - m + m^2/2) / m^3``, or of ``(2 artanh(s) - 2 s) / s^3`` with
``s = m / (2 + m)``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

F, D = np.float32, np.float64
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
"""Nothing is reordered: ``n log 2`` is subtracted in two parts."""
_compiled = njit(**_OPTIONS)


def exp(x):
    """``e^x``."""
    raise NotImplementedError


def expm1(x):
    """``e^x - 1``, exact to the last places also where x is small."""
    raise NotImplementedError


def log1p(x):
    """``log(1 + x)``, exact to the last places also where x is small."""
    raise NotImplementedError


def sigmoid(x):
    """``1 / (1 + e^-x)``, also in the lower tail."""
    raise NotImplementedError


def gauss_interval(z, d):
    """``Phi(z + d) - Phi(z)`` of the normal distribution without cancellation, for d within ``gauss_reach(z)``."""
    raise NotImplementedError


def near_gauss_interval(density, z, d):
    """:func:`gauss_interval` from ``density = phi(z)``, for a quarter of the reach: in float32 half of the work."""
    raise NotImplementedError


def logistic_change(s, variance, d):
    """Change of the sigmoid ``s``, with ``variance = s (1 - s)``, for ``|d| <= 1``: ``s (1 - s) e / (1 + s e)``.

    e is ``expm1(d)``.
    """
    raise NotImplementedError


@_compiled
def _power32(n):
    """``2^n`` for an integer n between -126 and 127."""
    return np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@_compiled
def _power64(n):
    """``2^n`` for an integer n between -1022 and 1023."""
    return np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)


@_compiled
def _reduced32(x):
    """n, r and ``(e^r - 1 - r) / r^2`` of ``x = n log 2 + r``."""
    n = np.rint(x * F(1.4426950408889634))
    r = (x - n * F(0.693359375)) - n * F(-2.12194440e-4)
    q = F(1.9891080463998842e-4)
    q = q * r + F(1.3933730715792083e-3)
    q = q * r + F(8.3333108446478629e-3)
    q = q * r + F(4.1666464197405692e-2)
    q = q * r + F(1.6666666681704215e-1)
    return np.int32(n), r, q * r + F(5.0000000135387299e-1)


@_compiled
def _reduced64(x):
    """n, r and ``(e^r - 1 - r) / r^2`` of ``x = n log 2 + r``."""
    n = np.rint(x * 1.4426950408889634)
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    q = 2.09147553258932022e-9
    q = q * r + 2.51053127296221018e-8
    q = q * r + 2.75572734787185805e-7
    q = q * r + 2.75572551700008874e-6
    q = q * r + 2.48015873256774619e-5
    q = q * r + 1.98412698750022788e-4
    q = q * r + 1.38888888888837112e-3
    q = q * r + 8.33333333332608312e-3
    q = q * r + 4.16666666666666698e-2
    q = q * r + 1.66666666666666710e-1
    return np.int64(n), r, q * r + 0.5


@_compiled
def _exp32(x):
    bounded = min(max(x, F(-104.0)), F(89.0))
    n, r, q = _reduced32(bounded)
    half = n >> np.int32(1)
    y = (F(1.0) + (r + r * r * q)) * _power32(half) * _power32(n - half)
    return x if math.isnan(x) else y


@_compiled
def _exp64(x):
    bounded = min(max(x, -746.0), 710.0)
    n, r, q = _reduced64(bounded)
    half = n >> np.int64(1)
    y = (1.0 + (r + r * r * q)) * _power64(half) * _power64(n - half)
    return x if math.isnan(x) else y


@_compiled
def _expm1_32(x):
    """With two halves a and b of n: ``2^b ((e^r - 1) 2^a + (2^a - 2^-b))``."""
    bounded = min(max(x, F(-25.0)), F(89.0))
    n, r, q = _reduced32(bounded)
    a = n >> np.int32(1)
    b = n - a
    scale = _power32(a)
    y = ((r + r * r * q) * scale + (scale - _power32(-b))) * _power32(b)
    return x if math.isnan(x) else y


@_compiled
def _expm1_64(x):
    bounded = min(max(x, -50.0), 710.0)
    n, r, q = _reduced64(bounded)
    a = n >> np.int64(1)
    b = n - a
    scale = _power64(a)
    y = ((r + r * r * q) * scale + (scale - _power64(-b))) * _power64(b)
    return x if math.isnan(x) else y


@_compiled
def _log1p32(x):
    """``1 + x = 2^e (1 + m)``, so ``m = x 2^-e + (2^-e - 1)``, which is x itself where it is small."""
    u = F(1.0) + x
    e = np.int32(np.int32(F(u).view(np.int32) - np.int32(0x3F3504F3)) >> np.int32(23))
    half = np.int32(e >> np.int32(1))
    low, high = _power32(-half), _power32(half - e)
    m = x * low * high + (low * high - F(1.0))
    p = F(6.9807019586649742e-2)
    p = p * m + F(-1.1494546612890219e-1)
    p = p * m + F(1.1689071137457869e-1)
    p = p * m + F(-1.2424037717650197e-1)
    p = p * m + F(1.4248551264361469e-1)
    p = p * m + F(-1.6667850972851766e-1)
    p = p * m + F(2.0000730503852239e-1)
    p = p * m + F(-2.4999996626939481e-1)
    p = p * m + F(3.3333331121880151e-1)
    n = F(e)
    y = m + (m * m * (m * p - F(0.5)) + n * F(-2.12194440e-4))
    y = y + n * F(0.693359375)
    y = x if x == F(np.inf) else y
    return y if x > F(-1.0) else (F(-np.inf) if x == F(-1.0) else F(np.nan))


@_compiled
def _log1p64(x):
    u = 1.0 + x
    e = np.int64(np.int64(D(u).view(np.int64) - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52))
    half = np.int64(e >> np.int64(1))
    low, high = _power64(-half), _power64(half - e)
    m = x * low * high + (low * high - 1.0)
    s = m / (2.0 + m)
    w = s * s
    q = 1.46355259877749976e-1
    q = q * w + 1.53301674332121181e-1
    q = q * w + 1.81829362102636435e-1
    q = q * w + 2.22222104839900480e-1
    q = q * w + 2.85714286299904475e-1
    q = q * w + 3.99999999998905903e-1
    q = q * w + 6.66666666666667000e-1
    square = 0.5 * m * m
    n = D(e)
    y = m - (square - (s * (square + w * q) + n * 1.90821492927058770002e-10))
    y = y + n * 6.93147180369123816490e-01
    y = x if x == np.inf else y
    return y if x > -1.0 else (-np.inf if x == -1.0 else np.nan)


@_compiled
def _sigmoid32(x):
    small = _exp32(-abs(x))
    return (small if x < F(0.0) else F(1.0)) / (F(1.0) + small)


@_compiled
def _sigmoid64(x):
    small = _exp64(-abs(x))
    return (small if x < 0.0 else 1.0) / (1.0 + small)


@_compiled
def _gauss32(z, d):
    """With ``h = d/2``: ``phi(m) d sum_k He_2k(m) h^2k / (2k + 1)!``, of which terms up to ``h^8`` are taken."""
    h = F(0.5) * d
    m = z + h
    w, v = min(m * m, F(174.0)), h * h
    s = F(1.0 / 362880) * ((((w + F(-28.0)) * w + F(210.0)) * w + F(-420.0)) * w + F(105.0))
    s = s * v + F(1.0 / 5040) * (((w + F(-15.0)) * w + F(45.0)) * w + F(-15.0))
    s = s * v + F(1.0 / 120) * ((w + F(-6.0)) * w + F(3.0))
    s = s * v + F(1.0 / 6) * (w + F(-1.0))
    n, r, q = _reduced32(F(-0.5) * w)
    return (F(1.0) + (r + r * r * q)) * _power32(n) * F(0.3989422804014327) * (d + d * (s * v))


@_compiled
def _gauss64(z, d):
    h = 0.5 * d
    m = z + h
    w, v = min(m * m, 1416.0), h * h
    s = (1.0 / 362880) * ((((w - 28.0) * w + 210.0) * w - 420.0) * w + 105.0)
    s = s * v + (1.0 / 5040) * (((w - 15.0) * w + 45.0) * w - 15.0)
    s = s * v + (1.0 / 120) * ((w - 6.0) * w + 3.0)
    s = s * v + (1.0 / 6) * (w - 1.0)
    n, r, q = _reduced64(-0.5 * w)
    return (1.0 + (r + r * r * q)) * _power64(n) * 0.3989422804014327 * (d + d * (s * v))


@_compiled
def _near32(density, z, d):
    """The series up to ``h^4``, and ``phi(m) = phi(z) exp(a)`` with ``a = -h (z + h/2)``, of size 0.26 at most."""
    h = F(0.5) * d
    a = -h * (z + F(0.5) * h)
    m = z + h
    w, v = m * m, h * h
    s = w * (w * F(1.0 / 120) + F(-6.0 / 120)) + F(3.0 / 120)
    s = s * v + (w * F(1.0 / 6) + F(-1.0 / 6))
    e = F(8.3543515e-3)
    e = e * a + F(4.1813840e-2)
    e = e * a + F(1.6666611e-1)
    e = e * a + F(0.49999611)
    e = e * a + F(1.0)
    e = e * a + F(1.0)
    g = density * d
    return (g + g * (s * v)) * e


@_compiled
def _near64(density, z, d):  # noqa: ARG001 - in float64 a shorter series would not reach far
    return _gauss64(z, d)


@_compiled
def _logistic32(s, variance, d):
    e = _expm1_32(d)
    return variance * e / (F(1.0) + s * e)


@_compiled
def _logistic64(s, variance, d):
    e = _expm1_64(d)
    return variance * e / (1.0 + s * e)


def _register(function: Any, single: Any, double: Any) -> None:
    """Calls of ``function`` in a compiled loop are those of the version of their last argument's type."""

    @overload(function, jit_options=_OPTIONS)
    def choose(*arguments):
        return {types.float32: of_single, types.float64: of_double}.get(arguments[-1])

    def of_single(*arguments):
        return single(*arguments)

    def of_double(*arguments):
        return double(*arguments)


_register(exp, _exp32, _exp64)
_register(expm1, _expm1_32, _expm1_64)
_register(log1p, _log1p32, _log1p64)
_register(sigmoid, _sigmoid32, _sigmoid64)
_register(gauss_interval, _gauss32, _gauss64)
_register(near_gauss_interval, _near32, _near64)
_register(logistic_change, _logistic32, _logistic64)
