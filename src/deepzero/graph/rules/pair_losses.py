"""Losses of pairs of tensors: each the mean, the sum, or all of a pointwise function.

Means and sums accumulate in float64. Every operand may differ: predictions, targets and weights.

Legend: entries: those of the broadcast operands that differ, in whatever shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Dense, Difference, entries
from deepzero.graph.rules import formulas
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.fallback import fallback
from deepzero.graph.rules.formulas import Entries
from deepzero.graph.rules.frames import Moving, jointly
from deepzero.graph.rules.pointwise import product_change, weighted

aten = torch.ops.aten
NONE, MEAN, SUM = 0, 1, 2


def _reduced(arguments: Sequence[Any], reduction: int, change: Callable[..., Tensor]) -> Difference:
    shape = _common_shape([a.base.shape for a in arguments if isinstance(a, Operand)])
    difference = jointly(shape, arguments, change)
    if reduction == NONE:
        return difference
    total = entries(difference).sum(1, dtype=torch.float64)
    return Dense(total / shape.numel() if reduction == MEAN else total)


def _common_shape(shapes: list[torch.Size]) -> torch.Size:
    return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _by_error(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Moving, Moving], Tensor]:
    """A change in terms of the error ``e = x - t`` and its difference."""
    return lambda x, t: function(x.base - t.base, weighted((x, 1), (t, -1)))


@rule(aten.mse_loss.default)
def mse_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN) -> Outcome:
    """``d (2 e + d)`` per entry."""
    return _reduced((x, target), reduction, _by_error(formulas.square))


@rule(aten.l1_loss.default)
def l1_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN) -> Outcome:
    """``|e + d| - |e|`` per entry."""
    return _reduced((x, target), reduction, _by_error(formulas.absolute))


@rule(aten.huber_loss.default)
def huber_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN, delta: float = 1.0) -> Outcome:
    """Quadratic up to ``delta``, linear beyond."""
    return _reduced((x, target), reduction, _by_error(lambda e, d: formulas.huber(e, d, delta)))


@rule(aten.smooth_l1_loss.default)
def smooth_l1_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN, beta: float = 1.0) -> Outcome:
    """Huber's loss over beta; the absolute error for beta = 0."""
    if beta == 0:
        return l1_loss(call, x, target, reduction)
    return _reduced((x, target), reduction, _by_error(lambda e, d: formulas.huber(e, d, beta) / beta))


@rule(aten.soft_margin_loss.default)
def soft_margin_loss(call: Call, x: Operand, target: Operand, reduction: int = MEAN) -> Outcome:
    """``log(1 + exp(-t x))``."""

    def change(x: Moving, t: Moving) -> Tensor:
        return formulas.softplus(-t.base * x.base, -product_change(x, t))

    return _reduced((x, target), reduction, change)


@rule(aten.binary_cross_entropy_with_logits.default)
def binary_cross_entropy_with_logits(
    call: Call,
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    pos_weight: Operand | None = None,
    reduction: int = MEAN,
) -> Outcome:
    """``w ((1 - t) softplus(x) + q t softplus(-x))`` with q the weight of positives: no term cancels another."""

    def change(x: Moving, t: Moving, w: Moving, q: Moving) -> Tensor:
        zero = torch.zeros((), dtype=x.base.dtype, device=x.base.device)
        negative = Moving(
            torch.logaddexp(x.base, zero), None if x.delta is None else formulas.softplus(x.base, x.delta)
        )
        positive = Moving(
            torch.logaddexp(-x.base, zero), None if x.delta is None else formulas.softplus(-x.base, -x.delta)
        )
        return _weighted_change(_plus(_times(_rest(t), negative), _times(_times(q, t), positive)), w)

    return _reduced((x, target, _or_one(weight), _or_one(pos_weight)), reduction, change)


@rule(aten.binary_cross_entropy.default)
def binary_cross_entropy(
    call: Call, x: Operand, target: Operand, weight: Operand | None = None, reduction: int = MEAN
) -> Outcome:
    """``-w (t L(x) + (1 - t) L(1 - x))`` with ``L = max(log, -100)``."""

    def change(x: Moving, t: Moving, w: Moving) -> Tensor:
        return -_weighted_change(_plus(_times(t, _bounded_log(x)), _times(_rest(t), _bounded_log(_rest(x)))), w)

    return _reduced((x, target, _or_one(weight)), reduction, change)


def _bounded_log(x: Moving) -> Moving:
    """``max(log x, -100)``, as the binary cross entropy of PyTorch has it."""
    base = torch.log(x.base).clamp(min=-100)
    if x.delta is None:
        return Moving(base, None)
    plain = torch.log(x.base + x.delta).clamp(min=-100) - base
    return Moving(base, torch.where(base > -100, torch.maximum(formulas.log(x.base, x.delta), -100 - base), plain))


@rule(aten.kl_div.default)
def kl_div(call: Call, x: Operand, target: Operand, reduction: int = MEAN, *, log_target: bool = False) -> Outcome:
    """``t (log t - x)``, or ``exp(t) (t - x)`` for logarithmic targets."""

    def change(x: Moving, t: Moving) -> Tensor:
        if not log_target:
            of_target = 0 if t.delta is None else _entropy_change(t.base, t.delta)
            return of_target - product_change(x, t)
        weight = Moving(t.base.exp(), None if t.delta is None else formulas.exp(t.base, t.delta))
        return product_change(weight, Moving(t.base - x.base, weighted((t, 1), (x, -1))))

    return _reduced((x, target), reduction, change)


def _entropy_change(t: Entries, d: Entries) -> Entries:
    """Of ``t log t``: ``d log(t + d) + t (log(t + d) - log t)``, 0 where a factor is."""
    moved = t + d
    closed = torch.xlogy(d, moved) + torch.where(t == 0, 0, t * formulas.log(t, d))
    return torch.where(moved > 0, closed, torch.xlogy(moved, moved) - torch.xlogy(t, t))


@rule(aten.poisson_nll_loss.default)
def poisson_nll_loss(
    call: Call, x: Operand, target: Operand, log_input: bool, full: bool, eps: float, reduction: int
) -> Outcome:
    """``exp(x) - t x``, or ``x - t log(x + eps)``; Stirling's term does not depend on x."""
    if full and target.difference is not None:
        return fallback(call, x, target, log_input, full, eps, reduction)

    def change(x: Moving, t: Moving) -> Tensor:
        if log_input:
            of_rate = 0 if x.delta is None else formulas.exp(x.base, x.delta)
            return of_rate - product_change(x, t)
        shifted = x.base + eps
        logs = Moving(torch.log(shifted), None if x.delta is None else formulas.log(shifted, x.delta))
        return weighted((x, 1)) - product_change(logs, t)  # type: ignore[no-any-return]

    return _reduced((x, target), reduction, change)


@rule(aten.margin_ranking_loss.default)
def margin_ranking_loss(
    call: Call, a: Operand, b: Operand, target: Operand, margin: float = 0.0, reduction: int = MEAN
) -> Outcome:
    """``max(-t (a - b) + margin, 0)``."""

    def change(a: Moving, b: Moving, t: Moving) -> Tensor:
        apart = Moving(a.base - b.base, _or_none(weighted((a, 1), (b, -1))))
        return formulas.relu(margin - t.base * apart.base, -product_change(apart, t))

    return _reduced((a, b, target), reduction, change)


def _or_none(delta: Any) -> Any:
    return delta if isinstance(delta, Tensor) else None


def _or_one(weight: Operand | None) -> Any:
    return 1.0 if weight is None else weight


def _rest(share: Moving) -> Moving:
    """One minus a share."""
    return Moving(1 - share.base, None if share.delta is None else -share.delta)


def _times(a: Moving, b: Moving) -> Moving:
    differs = a.delta is not None or b.delta is not None
    return Moving(a.base * b.base, product_change(a, b) if differs else None)


def _plus(a: Moving, b: Moving) -> Moving:
    return Moving(a.base + b.base, _or_none(weighted((a, 1), (b, 1))))


def _weighted_change(loss: Moving, weight: Moving) -> Entries:
    """Change of the weighted loss; a weight that is a float is 1."""
    if isinstance(weight.base, float):
        delta: Tensor = loss.delta
        return delta
    return product_change(loss, weight)
