"""Losses of classifiers by name, beside those of ``torch.nn.functional``."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def centered_squared_error(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean squared distance to the centered one-hot target, the loss of Boopathy & Fiete, ICML 2022.

    .. math:: \\ell = \\frac{1}{Bk} \\sum_{b,j} \\bigl(z_{bj} - (\\mathbb 1[j = y_b] - 1/k)\\bigr)^2

    Args:
        logits: :math:`z`, of B samples and k classes.
        labels: :math:`y`, from 0 to k - 1.

    Example:
        >>> import torch
        >>> round(centered_squared_error(torch.zeros(1, 2), torch.tensor([0])).item(), 6)
        0.25
    """
    classes = logits.shape[1]
    error = logits - (F.one_hot(labels, classes).to(logits.dtype) - 1 / classes)
    return (error * error).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "squared-error": centered_squared_error,
}
"""Name in a configuration -> ``loss(logits, labels)``."""
