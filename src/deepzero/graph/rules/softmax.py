"""Softmax and what is made of it.

All follow from the change of the log-normaliser: with probabilities p and logit differences d,
``log sum exp(z + d) - log sum exp(z) = log1p(sum_j p_j expm1(d_j))``. A stack of differences has one dimension more in
front, over the perturbations, and ``dim`` counts the stack's dimensions.

Legend: count perturbations; any, shape: of base values, with or without a dimension of length 1 in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Channel, Dense, difference_dtype
from deepzero.graph.rules.base import normal_dim, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.formulas import OVERFLOW, within
from deepzero.graph.rules.reduction import along, reduced_dims

aten = torch.ops.aten


def normaliser_change(
    p: Float[Tensor, "*any"],
    d: Float[Tensor, "count ..."],
    dim: int | list[int],
    log_p: Callable[[], Tensor] | None = None,
) -> Float[Tensor, "count ..."]:
    """Change of ``log sum exp`` along ``dim`` (kept), from the softmax p of the base.

    ``log_p`` gives the logarithm of p, exact also where p is 0 by underflow; by default it is taken of p. To it the
    differences are added that are so large that expm1 could overflow, and all where little is left of the sum.
    """
    if not within(d, -math.inf, OVERFLOW):
        logs = p.log() if log_p is None else log_p()
        terms = torch.where(d > OVERFLOW, torch.exp(logs + d) - p, p * torch.expm1(d.clamp(max=OVERFLOW)))
    else:
        terms = p * torch.expm1(d)
    growth = terms.sum(dim, keepdim=True)
    plain = (growth < -0.5) | (growth > 1e6)
    if plain.device.type == "cpu" and not bool(plain.any()):  # a GPU is not waited for
        return torch.log1p(growth)
    logs = p.log() if log_p is None else log_p()
    return torch.where(plain, torch.logsumexp(logs + d, dim, keepdim=True), torch.log1p(growth))


def softmax_change(
    p: Float[Tensor, "*any"],
    d: Float[Tensor, "count ..."],
    dim: int,
    log_p: Callable[[], Tensor] | None = None,
) -> Float[Tensor, "count ..."]:
    """``softmax(z + d) - softmax(z) = p expm1(d - change of the normaliser)``; see :func:`normaliser_change`."""
    change = log_softmax_change(p, d, dim, log_p)
    if within(change, -math.inf, OVERFLOW):
        return p * torch.expm1(change)
    logs = p.log() if log_p is None else log_p()
    closed = p * torch.expm1(change.clamp(max=OVERFLOW))
    return torch.where(change > OVERFLOW, torch.exp(logs + change) - p, closed)


def log_softmax_change(
    p: Float[Tensor, "*any"],
    d: Float[Tensor, "count ..."],
    dim: int,
    log_p: Callable[[], Tensor] | None = None,
) -> Float[Tensor, "count ..."]:
    """``d - change of the normaliser``, counted from the likeliest entry: its own change is small, and would cancel."""
    behind = normal_dim(dim, d.dim()) - d.dim()
    likeliest = p.argmax(behind, keepdim=True)
    size = list(d.shape)
    size[behind] = 1
    d = d - d.gather(behind, likeliest.expand(size))
    return d - normaliser_change(p, d, behind, log_p)


@rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
def softmax(call: Call, x: Operand, dim: int, *_: Any, **__: Any) -> Outcome:
    """``p expm1(d - change of the normaliser)``. Rows without any finite logit stay what they are."""
    return _normalised(call, x, dim, call.output.base, softmax_change)


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(call: Call, x: Operand, dim: int, *_: Any, **__: Any) -> Outcome:
    """``d - change of the normaliser``."""
    p = call.memo("probabilities", call.output.base.exp)
    return _normalised(call, x, dim, p, log_softmax_change)


def _normalised(call: Call, x: Operand, dim: int, p: Float[Tensor, "*shape"], change: Callable[..., Tensor]) -> Outcome:
    """The change along one dimension; a channel of another dimension stays one."""
    dtype = difference_dtype(call.output.base.dtype)
    axis = normal_dim(dim, x.base.dim()) if x.base.dim() else 0
    difference = x.difference
    assert difference is not None
    if x.base.dim() == 0:
        return None  # a softmax of one value is 1
    fused = _fused(call, x, axis, p, log=change is log_softmax_change)
    if fused is not None:
        return fused

    def apply(z: Tensor, p: Tensor, d: Tensor) -> Tensor:
        behind = axis - x.base.dim()
        changed: Tensor = change(p, d.to(dtype), behind, lambda: log_probabilities(z.to(dtype), behind))
        return changed

    if isinstance(difference, Channel) and difference.axis != axis:
        place = difference.axis + 1
        z, of_channel = (difference.of(base).unsqueeze(place) for base in (x.base, p))
        return difference.with_delta(apply(z, of_channel, difference.delta.unsqueeze(place)).squeeze(place))
    return Dense(apply(x.base, p, difference.dense()))


def _fused(call: Call, x: Operand, axis: int, p: Float[Tensor, "*shape"], *, log: bool) -> Outcome:
    """By a kernel of the device, where it has one for these differences."""
    if not isinstance(x.difference, (Channel, Dense)):
        return None
    chances = call.memo("chances", lambda: Value(p))
    logarithms = call.memo("logarithms", lambda: Value(log_probabilities(x.base.to(p.dtype), axis)))
    own = kernels.on(x.difference.delta)
    return own.softmax(x.difference, chances, logarithms, axis, log=log, overwrite=x.expendable)


def log_probabilities(z: Float[Tensor, "*any"], dim: int | list[int]) -> Float[Tensor, "*any"]:
    """``log softmax`` along one dimension or several; -inf in rows without any finite logit."""
    logs = z - torch.logsumexp(z, dim, keepdim=True)
    return torch.where(logs.isnan() & ~z.isnan(), -math.inf, logs)


@rule(aten.logsumexp.default)
def logsumexp(call: Call, x: Operand, dim: Any, keepdim: bool = False) -> Outcome:
    """The change of the normaliser itself."""
    if not x.base.is_floating_point():
        return fallback(call, x, dim, keepdim)

    def change(z: Tensor, d: Tensor, dims: list[int]) -> Tensor:
        if not dims:
            return d
        logs = log_probabilities(z, dims)
        return normaliser_change(logs.exp(), d, dims, lambda: logs)

    return along(x, reduced_dims(dim, x.base.dim()), keepdim, change)
