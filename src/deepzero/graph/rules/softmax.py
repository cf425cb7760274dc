"""Softmax and the losses on top of it.

All follow from the change of the log-normaliser: with probabilities p and logit differences d,
``log sum exp(z + d) - log sum exp(z) = log1p(sum_j p_j expm1(d_j))``. A stack of differences has one dimension more in
front, over the perturbations, and ``dim`` counts the stack's dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Dense, entries
from deepzero.graph.rules.base import apply_pointwise, difference_of, normal_dim, rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten
MEAN, SUM = 1, 2


def normaliser_change(
    p: Float[Tensor, "*shape"], d: Float[Tensor, " count *shape"], dim: int
) -> Float[Tensor, "count ..."]:
    """Change of ``log sum exp`` along ``dim`` (kept), from the softmax p of the base.

    Large differences, where expm1 could overflow, take the plain form; it does not cancel there.
    """
    if large(d):
        return torch.logsumexp(p.log() + d, dim, keepdim=True)
    return torch.log1p((p * torch.expm1(d)).sum(dim, keepdim=True))


def large(d: Tensor) -> bool:
    """Whether some difference is of the order of the values themselves."""
    return bool((d.abs() > 1).any())


def softmax_change(
    p: Float[Tensor, "*shape"], d: Float[Tensor, " count *shape"], dim: int
) -> Float[Tensor, " count *shape"]:
    """``softmax(z + d) - softmax(z)``."""
    change = d - normaliser_change(p, d, dim)
    return (p.log() + change).exp() - p if large(change) else p * torch.expm1(change)


@rule(aten.softmax.int, aten._softmax.default)
def softmax(call: Call, x: Operand, dim: int, *_: Any) -> Outcome:
    """``p expm1(d - change of the normaliser)``."""
    assert x.difference is not None
    axis = normal_dim(dim, x.base.dim()) + 1
    return Dense(softmax_change(call.output.base, x.difference.dense(), axis))


@rule(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(call: Call, x: Operand, dim: int, *_: Any) -> Outcome:
    """``d - change of the normaliser``."""
    assert x.difference is not None
    d = x.difference.dense()
    p = call.memo("probabilities", call.output.base.exp)
    return Dense(d - normaliser_change(p, d, normal_dim(dim, x.base.dim()) + 1))


@rule(aten.cross_entropy_loss.default)
def cross_entropy(
    call: Call,
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Outcome:
    """Per sample ``log1p(sum_j p_j expm1(d_j)) - d_y``; smoothing e makes ``d_y`` into ``(1-e) d_y + e mean_j d_j``."""
    if weight is not None or target.base.is_floating_point() or difference_of(target) is not None:
        return fallback(call, x, target, weight, reduction, ignore_index, label_smoothing)
    assert x.difference is not None
    dim = 1 if x.base.dim() > 1 else 0
    d = x.difference.dense()
    p = call.memo("probabilities", lambda: torch.softmax(x.base, dim))
    keep = call.memo("keep", lambda: target.base != ignore_index)
    label = call.memo("label", lambda: torch.where(keep, target.base, 0).unsqueeze(dim))
    picked = d.gather(dim + 1, label.unsqueeze(0).expand(d.shape[0], *label.shape))
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * d.mean(dim + 1, keepdim=True)
    losses = (normaliser_change(p, d, dim + 1) - picked).squeeze(dim + 1) * keep
    return Dense(_reduced(losses, reduction, keep))


def _reduced(
    losses: Num[Tensor, " count *targets"], reduction: int, keep: Bool[Tensor, "*targets"]
) -> Num[Tensor, "count ..."]:
    """Reduce per-sample losses in float64."""
    if reduction == MEAN:
        return losses.reshape(len(losses), -1).sum(1, dtype=torch.float64) / keep.sum()
    return losses.reshape(len(losses), -1).sum(1, dtype=torch.float64) if reduction == SUM else losses


@rule(aten.nll_loss_nd.default)
def nll_loss(
    call: Call,
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
) -> Outcome:
    """``-d_y`` per sample."""
    if weight is not None or target.difference is not None:
        return fallback(call, x, target, weight, reduction, ignore_index)
    assert x.difference is not None
    dim = 1 if x.base.dim() > 1 else 0
    d = x.difference.dense()
    keep = call.memo("keep", lambda: target.base != ignore_index)
    label = torch.where(keep, target.base, 0).unsqueeze(dim)
    losses = -d.gather(dim + 1, label.unsqueeze(0).expand(d.shape[0], *label.shape)).squeeze(dim + 1) * keep
    return Dense(_reduced(losses, reduction, keep))


@rule(aten.mse_loss.default)
def mse_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN) -> Outcome:
    """``d (2 (z - t) + d)`` per entry, where d is the difference of ``z - t``."""
    if x.base.shape != target.base.shape or target.difference is not None:
        return fallback(call, x, target, reduction)
    error = call.memo("error", lambda: type(call.output)(x.base - target.base))
    change = apply_pointwise(Operand(error, x.difference), lambda e, d: d * (2 * e + d))
    if reduction not in (MEAN, SUM):
        return change
    total = entries(change).sum(1, dtype=torch.float64)
    return Dense(total / x.base.numel() if reduction == MEAN else total)
