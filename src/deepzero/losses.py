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
PLAIN = (
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.cross_entropy,
    F.huber_loss,
    F.l1_loss,
    F.mse_loss,
    F.nll_loss,
    F.smooth_l1_loss,
)
"""Losses of PyTorch that a run knows again by their names."""


def loss_name(loss: object) -> str | None:
    """The name of a loss, under which :func:`named_loss` finds it again; None if it has none.

    Example:
        >>> loss_name(F.cross_entropy), loss_name(F.mse_loss), loss_name(lambda x, y: 0.0)
        ('cross-entropy', 'mse_loss', None)
    """
    names = {id(known): known.__name__ for known in PLAIN} | {id(known): name for name, known in LOSSES.items()}
    return names.get(id(loss))


def named_loss(name: str | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The loss of a name; None if there is none.

    Example:
        >>> named_loss("mse_loss") is F.mse_loss, named_loss("my_loss") is None
        (True, True)
    """
    return ({known.__name__: known for known in PLAIN} | LOSSES).get(name or "")
