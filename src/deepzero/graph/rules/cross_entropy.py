"""Cross entropy and negative log likelihood, from the change of the log-normaliser.

Per sample the loss is ``-sum_c a_c log p_c`` with fixed coefficients a, and changes by ``sum_c a_c (L - d_c)`` with L
the change of the normaliser: for a class label, with weights w and smoothing e, ``a_y = (1 - e) w_y`` and every class
gets ``e w_c / C`` more; for probabilities t, ``a_c = w_c ((1 - e) t_c + e / C)``. Differences are counted from that of
the label's logit, so that ``L - d_y`` keeps its accuracy where the network is sure and nearly nothing is left of it.

Legend: count perturbations; shape: of the logits, ``[b, c, *positions]`` or ``[c]``; targets: the same without the
classes c; kept: with length 1 along them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Num, Shaped
from torch import Tensor

from deepzero.graph import kernels
from deepzero.graph.calls import Call, Operand, Outcome, Value
from deepzero.graph.differences import Channel, Dense, Difference, LowRank
from deepzero.graph.rules.base import difference_of, rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.pair_losses import MEAN, NONE
from deepzero.graph.rules.softmax import log_probabilities, normaliser_change

aten = torch.ops.aten


@rule(aten.cross_entropy_loss.default, low_rank=True)
def cross_entropy(
    call: Call,
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Outcome:
    """Of class labels or of probabilities. Labels or weights that differ themselves take the fallback."""
    of_labels = not target.base.is_floating_point()
    if difference_of(weight) is not None or (of_labels and target.difference is not None):
        return fallback(call, x, target, weight, reduction, ignore_index, label_smoothing)
    if of_labels:
        return _of_labels(call, x, target, weight, reduction, ignore_index, label_smoothing)
    return _of_probabilities(call, x, target, weight, reduction, label_smoothing)


def _class_dim(x: Operand) -> int:
    return 1 if x.base.dim() > 1 else 0


def _normaliser(call: Call, x: Operand, d: Num[Tensor, " count *shape"]) -> Num[Tensor, " count *kept"]:
    dim = _class_dim(x)
    p = call.memo("probabilities", lambda: torch.softmax(x.base, dim))
    change: Tensor = normaliser_change(p, d, dim + 1, lambda: _log_p(call, x))
    return change


def _log_p(call: Call, x: Operand) -> Float[Tensor, "*shape"]:
    logs: Tensor = call.memo("log probabilities", lambda: log_probabilities(x.base, _class_dim(x)))
    return logs


def _weights(x: Operand, weight: Operand | None) -> Num[Tensor, " c *ones"] | None:
    """The class weights, broadcastable against the logits."""
    return None if weight is None else weight.base.reshape(-1, *(1 for _ in x.base.shape[_class_dim(x) + 1 :]))


def _of_labels(
    call: Call, x: Operand, target: Operand, weight: Operand | None, reduction: int, ignore_index: int, smoothing: float
) -> Outcome:
    dim, weights = _class_dim(x), _weights(x, weight)
    keep, label, own = call.memo("labels", lambda: _labels(target.base, ignore_index, weight, dim))
    assert x.difference is not None
    fused = None if smoothing else _fused(call, x, label.squeeze(dim), own, reduction, dim)
    if fused is not None:
        return fused
    d = x.difference.dense()
    d = d - _picked(d, label, dim)
    normaliser = _normaliser(call, x, d)
    losses = normaliser.squeeze(dim + 1) * own
    if smoothing:
        even = normaliser - d if weights is None else (normaliser - d) * weights
        losses = (1 - smoothing) * losses + smoothing * even.mean(dim + 1) * keep
    return Dense(_reduced(losses, reduction, own))


def _fused(
    call: Call,
    x: Operand,
    label: Int64[Tensor, "*targets"],
    own: Shaped[Tensor, "*targets"],
    reduction: int,
    dim: int,
) -> Difference | None:
    """By a kernel of the device, where it has one; only the samples that differ, where they are one of a dimension."""
    difference = x.difference
    if not isinstance(difference, (Channel, Dense, LowRank)):
        return None
    chances = call.memo("chances", lambda: Value(torch.softmax(x.base, dim)))
    logarithms = call.memo("logarithms", lambda: Value(_log_p(call, x)))
    device = kernels.on(x.base)
    if isinstance(difference, LowRank):
        losses = device.label_losses_of_sums(difference, chances, logarithms, label)
        if losses is not None:
            return Dense(_reduced(losses * own, reduction, own))
        difference = Dense(difference.dense())
    losses = device.label_losses(difference, chances, logarithms, label, dim)
    if losses is None:
        return None
    if not isinstance(difference, Channel) or difference.axis == dim:
        return Dense(_reduced(losses * own, reduction, own))
    axis = difference.axis - (difference.axis > dim)
    losses = losses * own.movedim(axis, 0)[difference.channels]
    if reduction == NONE:
        return Channel(axis, difference.channels, losses, own.shape)
    return Dense(_reduced(losses, reduction, own))


def _labels(
    target: Int64[Tensor, "*targets"], ignore_index: int, weight: Operand | None, dim: int
) -> tuple[Bool[Tensor, "*targets"], Int64[Tensor, "*kept"], Shaped[Tensor, "*targets"]]:
    """A mask of the targets that count, their labels (0 for others), and their weights (0 for others)."""
    keep = target != ignore_index
    label = torch.where(keep, target, 0)
    own = keep if weight is None else weight.base[label] * keep
    return keep, label.unsqueeze(dim), own


def _picked(d: Num[Tensor, " count *shape"], label: Int64[Tensor, "*kept"], dim: int) -> Num[Tensor, " count *kept"]:
    """The label's entry."""
    return d.gather(dim + 1, label.unsqueeze(0).expand(d.shape[0], *label.shape))


def _of_probabilities(
    call: Call, x: Operand, target: Operand, weight: Operand | None, reduction: int, smoothing: float
) -> Outcome:
    dim, weights = _class_dim(x), _weights(x, weight)
    chances = target.base * (1 - smoothing) + smoothing / x.base.shape[dim]
    change: Tensor | int = 0
    if x.difference is not None:
        d = x.difference.dense()
        moved = chances if target.difference is None else chances + (1 - smoothing) * target.difference.dense()
        change = moved * (_normaliser(call, x, d) - d)
    if target.difference is not None:
        change = change - (1 - smoothing) * target.difference.dense() * _log_p(call, x)
    losses: Any = change if weights is None else change * weights
    samples = torch.ones(losses.shape[1 : dim + 1] + losses.shape[dim + 2 :], device=losses.device)
    return Dense(_reduced(losses.sum(dim + 1), reduction, samples))


def _reduced(
    losses: Num[Tensor, "count ..."], reduction: int, own: Shaped[Tensor, "*targets"]
) -> Num[Tensor, "count ..."]:
    """Reduce per-sample losses in float64; a mean is over the weights of what counts."""
    if reduction == NONE:
        return losses
    total = losses.reshape(len(losses), -1).sum(1, dtype=torch.float64)
    return total / own.sum(dtype=torch.float64) if reduction == MEAN else total


@rule(aten.nll_loss_nd.default)
def nll_loss(
    call: Call,
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
) -> Outcome:
    """``-w_y d_y`` per sample. Labels or weights that differ themselves take the fallback."""
    if difference_of(weight) is not None or target.difference is not None:
        return fallback(call, x, target, weight, reduction, ignore_index)
    assert x.difference is not None
    dim = _class_dim(x)
    _, label, own = call.memo("labels", lambda: _labels(target.base, ignore_index, weight, dim))
    losses = -_picked(x.difference.dense(), label, dim).squeeze(dim + 1) * own
    return Dense(_reduced(losses, reduction, own))
