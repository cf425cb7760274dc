"""The operands of attention as kernels take them: base values with their changes, and whether they go together.

Legend: p perturbations, lead: samples and heads; n queries or keys, e features.
"""

from __future__ import annotations

from torch import Tensor

Pair = tuple[Tensor, Tensor | None]
"""A base value ``[*lead, n, e]`` and its change ``[p, *lead, n, e]``, if any."""


def tensors_of(query: Pair, key: Pair, value: Pair, weights: Tensor) -> list[Tensor] | None:
    """Weights ``[*lead, l, s]``, base values and changes.

    None if neither q nor k differs, leading dimensions differ, or nothing is there to attend to.
    """
    own = [t for pair in (query, key, value) for t in pair if t is not None]
    lead = weights.shape[:-2]
    alike = all(t.shape[-2 - len(lead) : -2] == lead for t in own)
    moved = query[1] is not None or key[1] is not None
    found = [weights, *own]
    return found if moved and alike and all(t.numel() for t in found) else None
