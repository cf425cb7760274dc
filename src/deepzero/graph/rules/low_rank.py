"""Normalization of differences whose rows are sums of a few vectors: they stay such sums.

With centred base rows c of n entries and scale s, a difference ``sum_k a_k v_k`` of a row changes its variance by dv
and the normalized row by e, where w are the centred vectors:

    dv = sum_k a_k (2 mean(c w_k) + sum_l mean(w_k w_l) a_l),   s'^2 = s^2 + dv,
    e = sum_k (a_k / s') w_k + (1/s' - 1/s) c,   1/s' - 1/s = -dv / (s s' (s + s')).

The means are few: those of vectors with vectors, and of vectors with base rows, which are one matrix product.

Legend: p perturbations, lead: dimensions before the last, k vectors, n entries of a row, rows: all of lead.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Call
from deepzero.graph.differences import BaseRows, Channel, Difference, LowRank, RankOne
from deepzero.graph.rules.formulas import changed_root


@dataclass(frozen=True)
class Normalization:
    """Base values of a normalization of the last dimension.

    Attributes:
        centred: the base values, minus their means if there are any to subtract.
        scale: the square root of their mean square plus epsilon.
        eps: epsilon.
        gamma: a factor of each entry, 1 if None.
        subtracts_mean: whether there are.
    """

    centred: Float[Tensor, "*lead n"]
    scale: Float[Tensor, "*lead 1"]
    eps: float
    gamma: Float[Tensor, " n"] | None
    subtracts_mean: bool


def normalized_low_rank(call: Call, difference: Difference | None, base: Normalization) -> LowRank | None:
    """The change of a normalized value, of low rank; None where the difference is not, or where it would not pay."""
    found = _summed(difference)
    if found is None or 2 * found.factors.shape[-1] > min(found.shape[-1], found.shape[:-1].numel()):
        return None
    vectors = found.vectors - found.vectors.mean(-1, keepdim=True) if base.subtracts_mean else found.vectors
    dv = _variance_change(found.factors, vectors, base.centred)
    scale = base.scale.squeeze(-1)
    new_scale = changed_root(scale, dv, lambda: _squares_left(found.factors, vectors, base))
    multiples = -dv / (scale * new_scale * (scale + new_scale))
    rows = call.memo("base rows", lambda: BaseRows(_times(base.centred, base.gamma)))
    return LowRank(found.factors / new_scale.unsqueeze(-1), _times(vectors, base.gamma), found.shape, multiples, rows)


def _squares_left(
    factors: Float[Tensor, "p *lead k"], vectors: Float[Tensor, "#p k n"], base: Normalization
) -> Float[Tensor, " p *lead"]:
    """Mean square plus epsilon of the rows that differ, written out one perturbation after the other."""
    size, rows = vectors.shape[-1], base.centred.reshape(-1, vectors.shape[-1])
    squares = factors.new_empty(len(factors), len(rows))
    for p, flat in enumerate(factors.reshape(len(factors), -1, factors.shape[-1])):
        squares[p] = (rows + flat @ vectors[p % len(vectors)]).square().sum(-1)
    return (squares / size + base.eps).reshape(factors.shape[:-1])


def _summed(difference: Difference | None) -> LowRank | None:
    """A difference as one of low rank without base rows, if it is one."""
    if isinstance(difference, LowRank):
        return difference if difference.rows is None else None
    if isinstance(difference, RankOne) and difference.places is None and difference.directions.shape[1] == 1:
        vectors = difference.directions[difference.groups]
        return LowRank(difference.coefficients.unsqueeze(-1), vectors, difference.shape)
    if isinstance(difference, Channel) and difference.axis == len(difference.shape) - 1:
        vectors = difference.delta.new_zeros(difference.count, 1, difference.shape[-1])
        vectors.scatter_(2, difference.channels.reshape(-1, 1, 1), 1)
        return LowRank(difference.delta.unsqueeze(-1), vectors, difference.shape)
    return None


def _times(rows: Float[Tensor, "*any n"], gamma: Float[Tensor, " n"] | None) -> Float[Tensor, "*any n"]:
    return rows if gamma is None else rows * gamma


def _variance_change(
    factors: Float[Tensor, "p *lead k"], vectors: Float[Tensor, "#p k n"], centred: Float[Tensor, "*lead n"]
) -> Float[Tensor, " p *lead"]:
    size, k = vectors.shape[-1], vectors.shape[-2]
    flat = factors.reshape(len(factors), -1, k)
    with_rows = (vectors @ centred.reshape(-1, size).mT).mT  # [#p, rows, k]
    among = vectors @ vectors.mT
    slope = flat * among if k == 1 else flat @ among
    return (flat * slope.add_(with_rows, alpha=2)).sum(-1).div_(size).reshape(factors.shape[:-1])
