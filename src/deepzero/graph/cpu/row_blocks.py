"""Rows of differences that are written block by block, each of a size that stays in the cache of a core.

Legend: p perturbations, m rows of each, k summed over, n entries of a row; some perturbations, and a part of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.differences import Channel, Dense, LowRank

BLOCK = 1 << 20
"""Bytes of a block: of those from 128 KiB to 2 MiB, products of a perceptron were fastest in blocks of 1 MiB.

With 1 MiB of second-level cache, by a quarter over 256 KiB and a tenth over 2 MiB."""


def blocks(count: int, rows: int, row: int, *, cut: bool) -> Iterator[tuple[int, int, int, int]]:
    """Perturbations ``first`` to ``last`` at rows ``start`` to ``stop``: several whole ones, or a part of one.

    Args:
        count: number of perturbations.
        rows: of each.
        row: bytes of a row.
        cut: whether the rows of a perturbation may be parted.
    """
    together, high = max(1, BLOCK // (rows * row)), max(1, BLOCK // row) if cut else rows
    for start in range(0, rows, high):
        for first in range(0, count, together):
            yield first, min(first + together, count), start, min(start + high, rows)


@dataclass(frozen=True)
class RowsOfInputs:
    """Dense differences of the inner layer's input, which its matrix takes to hidden ones; or those, without one."""

    delta: Float[Tensor, "p m k"]
    matrix: Float[Tensor, "k n"] | None

    @classmethod
    def of(cls, difference: Channel | Dense, inner: Float[Tensor, "n k"] | None) -> RowsOfInputs:
        """Of a difference of all entries, or of all those of a channel."""
        rows = difference.delta.reshape(difference.count, -1, difference.shape[-1]).contiguous()
        return cls(rows, None if inner is None else inner.t())

    def write(self, block: Float[Tensor, "some part n"], some: slice, part: slice) -> None:
        """Write the hidden differences of some perturbations at some rows."""
        delta = self.delta[some, part]
        if self.matrix is None:
            block.copy_(delta)
        else:
            torch.mm(delta.flatten(0, 1), self.matrix, out=block.flatten(0, 1))


@dataclass(frozen=True)
class RowsOfSums:
    """Hidden differences of low rank."""

    factors: Float[Tensor, "p m k"]
    vectors: Float[Tensor, " #p k n"]
    multiples: Float[Tensor, "p m 1"] | None
    base: Float[Tensor, "m n"] | None

    @classmethod
    def of(cls, difference: LowRank) -> RowsOfSums:
        """The parts of a difference by rows."""
        count, rows = difference.count, difference.shape[:-1].numel()
        multiples, base = None, None
        if difference.multiples is not None and difference.rows is not None:
            multiples = difference.multiples.reshape(count, rows, 1)
            base = difference.rows.base.reshape(rows, -1)
        return cls(difference.factors.reshape(count, rows, -1), difference.vectors, multiples, base)

    def write(self, block: Float[Tensor, "some part n"], some: slice, part: slice) -> None:
        """Write the hidden differences of some perturbations at some rows."""
        factors = self.factors[some, part]
        shared = len(self.vectors) == 1
        vectors = self.vectors if shared else self.vectors[some]
        if factors.shape[2] == 1:
            torch.mul(factors, vectors, out=block)
        elif shared:
            torch.mm(factors.reshape(-1, factors.shape[2]), vectors[0], out=block.flatten(0, 1))
        else:
            torch.bmm(factors, vectors, out=block)
        if self.multiples is not None and self.base is not None:
            block.addcmul_(self.multiples[some, part], self.base[part])
