"""Perceptrons on a CPU: differences between the two linear layers are made block by block, each in the cache of a core.

The hidden layer is several times as wide as what is around it. Written out for a whole chunk, its differences go to
memory and back for each of the operations; a block stays in the cache from the first product to the second.

Legend: p perturbations, c channels, m rows of a perturbation, k inputs, n hidden features, o outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu.activation_kernels import BaseOrder, PointwiseLoop, rows_of
from deepzero.graph.differences import Channel, Dense, LowRank

BLOCK = 1 << 20
"""Bytes of hidden differences that are made at a time."""


def perceptron(
    function: str,
    slope: float,
    hidden: Value,
    difference: Channel | Dense | LowRank,
    inner: Float[Tensor, "n k"] | None,
    outer: Float[Tensor, "o n"],
) -> Channel | Dense | None:
    """A block after the other: its differences in front of the activation, behind it, and times the outer matrix."""
    base: Tensor = hidden.base
    if base.dtype not in (torch.float32, torch.float64) or not (base.numel() and difference.count and outer.numel()):
        return None
    source = RowsOfSums.of(difference) if isinstance(difference, LowRank) else RowsOfInputs.of(difference, inner)
    tensors = [t for t in (*vars(source).values(), outer) if isinstance(t, Tensor)]
    if any(t.dtype != base.dtype or not t.numel() for t in tensors):
        return None
    axis, slots = difference.axis if isinstance(difference, Channel) else None, rows_of(difference)
    order = BaseOrder(axis, tuple(d for d in range(base.dim()) if d != axis))
    loop = PointwiseLoop.of(function, slope, order, hidden)
    count, width, size = difference.count, base.shape[-1], len(outer)
    rows = loop.bases[0].shape[1] // width
    out, memory = base.new_empty(count, rows, size), base.new_empty(0)
    for first, last, start, stop in _blocks(count, rows, width * base.element_size(), cut=axis is None):
        needed = (last - first) * (stop - start) * width
        memory = memory if len(memory) >= needed else base.new_empty(needed)
        block = memory[:needed].view(last - first, stop - start, width)
        source.write(block, slice(first, last), slice(start, stop))
        here = loop if stop - start == rows else loop.part(start * width, stop * width)
        flat = block.view(last - first, -1)
        here(flat, slots[first:last], flat)
        torch.mm(block.flatten(0, 1), outer.t(), out=out[first:last, start:stop].view(-1, size))
    shape = torch.Size((*base.shape[:-1], size))
    if isinstance(difference, Channel):
        rest = shape[: difference.axis] + shape[difference.axis + 1 :]
        return Channel(difference.axis, difference.channels, out.view(count, *rest), shape)
    return Dense(out.view(count, *shape), owned=True)


def _blocks(count: int, rows: int, row: int, *, cut: bool) -> Iterator[tuple[int, int, int, int]]:
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
