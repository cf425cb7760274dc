"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """The factor on the peak learning rate at a step: linear from 1/warmup to 1, then a cosine to 0.

    .. math:: \\frac{t + 1}{W} \\;(t < W), \\qquad
        \\frac{1}{2}\\Bigl(1 + \\cos\\frac{\\pi (t - W)}{T - W}\\Bigr) \\;(W \\le t < T)

    Args:
        step: :math:`t`, from 0.
        warmup: :math:`W`, steps of warm-up; may be 0.
        total: :math:`T`, steps of the run.

    Example:
        >>> [round(warmup_cosine(t, warmup=2, total=6), 3) for t in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
