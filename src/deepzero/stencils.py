"""Finite-difference stencils as data: positions and weights of the queries along a direction.

A stencil approximates the slope of :math:`t \\mapsto \\ell(\\theta + t p)` at 0 from differences to the base value,

.. math:: s = \\frac{1}{\\mu} \\sum_j w_j \\, [\\ell(\\theta + \\nu_j \\mu p) - \\ell(\\theta)],

with nodes :math:`\\nu_j` and weights :math:`w_j`. The error is :math:`O(\\mu^{\\text{order}})`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.errors import InvalidInputError


@dataclass(frozen=True)
class Stencil:
    """A finite-difference formula.

    Attributes:
        name: its name in the field.
        nodes: positions :math:`\\nu_j` along the direction, in units of the step size.
        weights: weights :math:`w_j`; they satisfy :math:`\\sum_j w_j \\nu_j = 1`.
        order: exponent of the step size in the error.

    Example:
        >>> import torch
        >>> differences = torch.tensor([[0.21], [-0.19]], dtype=torch.float64)  # of (1 + t)**2 at t = +-0.1
        >>> CENTRAL.slopes(differences, 0.1)
        tensor([2.], dtype=torch.float64)
    """

    name: str
    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    order: int

    def slopes(
        self, differences: Float[Tensor, "nodes k"], step_size: float | Float[Tensor, "nodes k"]
    ) -> Float[Tensor, " k"]:
        """Slopes along k directions from the loss differences at every node.

        Args:
            differences: :math:`\\ell(\\theta + t_{jk} p_k) - \\ell(\\theta)`.
            step_size: :math:`\\mu`, or the steps :math:`t_{jk}` that were really taken, which rounding may make differ
                from :math:`\\nu_j \\mu`: then :math:`s_k = \\sum_j w_j d_{jk} / \\sum_j w_j t_{jk}`.
        """
        weights = torch.tensor(self.weights, dtype=differences.dtype, device=differences.device)
        if isinstance(step_size, Tensor):
            return (weights @ differences) / (weights @ step_size.to(differences))
        return weights @ differences / step_size


FORWARD = Stencil("forward", nodes=(1.0,), weights=(1.0,), order=1)
"""One query a direction, error :math:`O(\\mu)`: the paper's choice."""

CENTRAL = Stencil("central", nodes=(1.0, -1.0), weights=(0.5, -0.5), order=2)
"""Two queries a direction, error :math:`O(\\mu^2)`."""

STENCILS = {stencil.name: stencil for stencil in (FORWARD, CENTRAL)}


def as_stencil(stencil: Stencil | str) -> Stencil:
    """A stencil, or the one of that name.

    Example:
        >>> as_stencil("central").nodes
        (1.0, -1.0)
    """
    if isinstance(stencil, Stencil):
        return stencil
    if isinstance(stencil, str) and stencil in STENCILS:
        return STENCILS[stencil]
    raise InvalidInputError(
        f"stencil must be dz.FORWARD, dz.CENTRAL, their names, or a Stencil of your own, got {stencil!r}"
    )
