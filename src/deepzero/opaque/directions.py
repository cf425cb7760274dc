"""Directions in the space of one row's inputs, for every row its own.

For all distributions :math:`E[c\\,u u^T] = I`, so that :math:`\\frac{c}{q} \\sum_k u_k u_k^T g` estimates :math:`g`
without bias: :math:`c = 1` for gaussian and Rademacher directions, :math:`c = d` for those of unit length. The squared
relative error of the estimate is :math:`(d + 1)/q` for gaussian, :math:`(d - 1)/q` for sphere and Rademacher ones,
and :math:`d/q - 1` for orthonormal blocks, which are therefore exact at :math:`q = d`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GAUSSIAN, SPHERE, RADEMACHER, ORTHOGONAL = "gaussian", "sphere", "rademacher", "orthogonal"
COORDINATES = "coordinates"
RANDOM = (GAUSSIAN, SPHERE, RADEMACHER, ORTHOGONAL)
UNIT = frozenset({SPHERE, ORTHOGONAL})
"""Distributions of unit length, in any dimension."""


@dataclass(frozen=True)
class RowDirections:
    """``queries`` directions for each of ``rows`` rows, a pure function of the seed.

    Attributes:
        kind: the distribution.
        rows: b.
        dimension: d.
        queries: q; no more than d of them are orthonormal, and d are exact already.
        seed: of their generator.
        like: dtype and device.
    """

    kind: str
    rows: int
    dimension: int
    queries: int
    seed: int
    like: Tensor

    @property
    def count(self) -> int:
        """Directions that are drawn."""
        return min(self.queries, self.dimension) if self.kind == ORTHOGONAL else self.queries

    @property
    def scale(self) -> float:
        """:math:`c / q`."""
        return (self.dimension if self.kind in UNIT else 1) / self.count

    def blocks(self, most: int) -> Iterator[Float[Tensor, "b k d"]]:
        """All directions, at most ``most`` of each row at a time."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.kind == ORTHOGONAL:
            yield from self._orthogonal(most, generator)
            return
        for start in range(0, self.count, most):
            shape = self.rows, min(most, self.count - start), self.dimension
            if self.kind == RADEMACHER:
                bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
                yield (bits.to(self.like.dtype) * 2 - 1).to(self.like.device)
                continue
            drawn = torch.randn(shape, generator=generator, dtype=self.like.dtype)
            if self.kind == SPHERE:
                drawn /= drawn.double().norm(dim=2, keepdim=True).to(drawn.dtype)
            yield drawn.to(self.like.device)

    def _orthogonal(self, most: int, generator: torch.Generator) -> Iterator[Float[Tensor, "b k d"]]:
        """Rows of an orthonormal cosine transform, drawn without replacement, under random signs.

        With the rows uniformly drawn and the signs independent, :math:`E[u u^T] = I/d`, whatever the transform; the
        error of an unbiased block of orthonormal directions is the same for all of them, :math:`d/q - 1`.
        """
        chosen = torch.rand(self.rows, self.dimension, generator=generator).argsort(1)[:, : self.count]
        signs = torch.randint(0, 2, (self.rows, 1, self.dimension), generator=generator, dtype=torch.int8) * 2 - 1
        for start in range(0, self.count, most):
            rows = cosines(chosen[:, start : start + most], self.dimension, self.like.dtype)
            yield rows.mul_(signs).to(self.like)


def cosines(rows: Tensor, dimension: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "*b d"]:
    """Rows of the orthonormal cosine transform (DCT-II) of size ``dimension``.

    .. math:: C_{kn} = \\sqrt{\\frac{2 - \\delta_{k0}}{d}} \\cos\\left(\\frac{\\pi}{d} (n + \\tfrac12) k\\right)

    Example:
        >>> matrix = cosines(torch.arange(5), 5)
        >>> bool(torch.allclose(matrix @ matrix.T, torch.eye(5, dtype=matrix.dtype)))
        True
    """
    exact = 4 * dimension <= 1 << 24  # integers that float32 holds
    working = torch.promote_types(dtype, torch.float32) if exact else torch.float64
    phase = (rows.unsqueeze(-1) * (2 * torch.arange(dimension) + 1)).remainder_(4 * dimension).to(working)
    size = torch.where(rows == 0, 1.0, math.sqrt(2.0)).to(working) / math.sqrt(dimension)
    return phase.mul_(math.pi / (2 * dimension)).cos_().mul_(size.unsqueeze(-1))
