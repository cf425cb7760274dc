"""Perceptrons on a CPU: differences between the two linear layers are made block by block, each in the cache of a core.

The hidden layer is several times as wide as what is around it. Written out for a whole chunk, its differences go to
memory and back for each of the operations; a block stays in the cache from the first product to the second.

Legend: p perturbations, c channels, m rows of a perturbation, k inputs, n hidden features, o outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu.activation_kernels import BaseOrder, PointwiseLoop, rows_of
from deepzero.graph.cpu.row_blocks import RowsOfInputs, RowsOfSums, blocks
from deepzero.graph.differences import Channel, Dense, LowRank


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
    for first, last, start, stop in blocks(count, rows, width * base.element_size(), cut=axis is None):
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
