"""Layouts and weights of 3x3 convolutions by Winograd's algorithm, and when it pays.

The loops, and what the algorithm is: :mod:`deepzero.graph.cpu.winograd_loops`.

Legend: b samples, c input and o output channels; numbers: of a flat array.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.cpu.convolution_layouts import TILE, ConvolutionSizes, Split, layout_of, vectors

SPECTRUM = 640 << 10
"""Bytes of transformed squares at a time, as far as a row of squares lets: a part of a core's cache.

With 1 MiB of cache, 64 channels of 8x8 were twice as fast at once as in halves, which take all weights twice.
"""
FORTH, BACK = 300, 250
"""Fused products of vectors that take as long as to transform a square there, and back, measured with their memory."""


@cache
def loops() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import winograd_loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return winograd_loops


class SquareLayout(NamedTuple):
    """A convolution laid out for the loops.

    Attributes:
        squares: the record of the loops.
        padded: numbers of a channel of a band with its padding.
        spectrum: numbers of the transformed squares of a band.
        products: numbers of the products of a tile of outputs.
        tile: outputs of a tile.
        work: fused products of vectors that it takes as long as, for a block of samples.
    """

    squares: Any
    padded: int
    spectrum: int
    products: int
    tile: int
    work: float

    @classmethod
    def of(
        cls, sizes: ConvolutionSizes, batch: int, outputs: int, dtype: torch.dtype, down: int, other: int
    ) -> SquareLayout:
        """In bands of ``down`` squares, by tiles of one of the shapes."""
        own, split = loops(), Split.of(batch, dtype)
        (channels, _, _), (height, width), lanes = sizes.size, sizes.spatial, split.lanes
        many, places = vectors().SHAPES[other]
        along, padded_outputs = -(-width // own.SIDE), -(-outputs // many) * many
        number = down * along
        padded = -(-number // places) * places
        apart = (channels * number + 4) * lanes  # the first entry's vectors are not 4 KiB from the second's
        row, deep = padded * lanes, many * padded * lanes
        square, entry = torch.arange(padded).clamp(max=number - 1) * lanes, torch.arange(own.ENTRIES).unsqueeze(1)
        bands, tiles = -(-height // (own.SIDE * down)), padded // places * (padded_outputs // many)
        products = own.ENTRIES * tiles * (channels * many * places + TILE)
        squares = own.Squares(
            sizes.size,
            len(split.firsts),
            split.skips.numpy(),
            sizes.spatial,
            sizes.pads[0][0],
            sizes.pads[1][0],
            down,
            along,
            outputs,
            padded_outputs,
            bool(other),
            apart,
            row,
            deep,
            (entry * apart + square).flatten().numpy(),
            (entry * deep + square).flatten().numpy(),
            (torch.arange(channels) * (number * lanes)).numpy(),
            (torch.arange(channels) * many).numpy(),
        )
        return cls(
            squares,
            (own.SIDE * down + 2) * (own.SIDE * along + 2) * lanes,
            own.ENTRIES * apart,
            own.ENTRIES * deep,
            many,
            bands * (products + number * (channels * FORTH + outputs * BACK)),
        )


@lru_cache(maxsize=256)
def square_layout(sizes: ConvolutionSizes, batch: int, outputs: int, dtype: torch.dtype) -> SquareLayout | None:
    """The layout of the least work; None if products one by one are less, or the algorithm does not apply."""
    if sizes.kernel != (3, 3) or sizes.stride != (1, 1) or sizes.dilation != (1, 1):
        return None
    rows = -(-sizes.spatial[0] // loops().SIDE)
    found = [
        SquareLayout.of(sizes, batch, outputs, dtype, down, other) for down in range(1, rows + 1) for other in (0, 1)
    ]
    fitting = [one for one in found if one.spectrum * dtype.itemsize <= SPECTRUM] or found[:2]
    best = min(fitting, key=lambda one: one.work)
    return best if best.work < layout_of(sizes, batch, outputs, 1, dtype, samples_last=False).work else None


def in_squares(weight: Value, outputs: int) -> Float[Tensor, " numbers"]:
    """Weights, transformed, as the loops read them, once a step: ``[tiles of outputs, entries, inputs, outputs]``."""

    def packed() -> Tensor:
        base: Tensor = weight.base
        matrix = torch.tensor(loops().FILTER, dtype=torch.float64)
        entries = torch.einsum("ik,ockl,jl->ijoc", matrix, base.double(), matrix).to(base.dtype).flatten(0, 1)
        padded: Tensor = F.pad(entries, (0, 0, 0, -len(base) % outputs))
        return padded.view(len(entries), -1, outputs, base.shape[1]).permute(1, 0, 3, 2).flatten()

    flat: Tensor = weight.remember(f"in squares, tiles of {outputs}", packed)
    return flat
