"""The operations between a convolution and the next layer: batch norm, a residual, relu, maxima of windows, a mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.graph.calls import Value
from deepzero.graph.windows import Window

REMAINS = 1 / 16
"""The least part of a square that is taken from what it was and what goes: ``s^2 + dv`` has lost four bits there.

Where less remains, rules and kernels of rows take it from what is left. Kernels of batch norm give NaN to the
perturbation, which is answered again by the rules of the parts.
"""


@dataclass(frozen=True, eq=False)
class Tail:
    """``relu(gamma (z - m) / s + beta + residual)``, of which maxima may be taken.

    Attributes:
        centred: ``z - m``, the convolution minus its means over samples and positions.
        scale: ``s = sqrt(variance + eps)``.
        gamma: a factor, 1 if None.
        before: the relu's argument.
        pooled: the maxima, if they are taken.
        window: of the maxima.
        averaged: the mean over all places is taken in the end. A kernel that cannot leaves it out.
    """

    centred: Value
    scale: Float[Tensor, " c"]
    gamma: Float[Tensor, " c"] | None
    before: Value
    pooled: Value | None = None
    window: Window | None = None
    averaged: bool = False

    def behind(self, shape: torch.Size) -> torch.Size:
        """The shape of what it makes of a convolution of ``shape``."""
        last = shape if self.pooled is None else self.pooled.base.shape
        return torch.Size((*last[:2], 1, 1)) if self.averaged else last
