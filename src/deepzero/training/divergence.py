"""Divergence: numbers with which a training cannot go on, wherever one is looked at, as one kind of error.

Each check gives the cause in words, or None; :func:`diverged` makes an error of it that names the last good checkpoint
and says what to try.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepzero.errors import NonFiniteLossError

ADVICE = (
    "what to try: a lower learning rate; a larger step size if losses are noisy; `deepzero doctor` measures the noise "
    "floor of the objective and recommends a step size"
)


GROWN = 1000.0
"""Growth of the largest weight from which a step size that no longer fits is put down to the training. Weights of sound
trainings grow less than tenfold; a step of 5e-3 vanishes in float32 weights of size 1 once they have grown 80,000-fold.
"""


def diverged(cause: str, *, step: int, epoch: int, checkpoints: Sequence[Path] = ()) -> NonFiniteLossError:
    """The error that ends a training.

    Args:
        cause: in words.
        step: at which it was seen.
        epoch: from 0.
        checkpoints: that are kept, the newest first; none of them holds a number that is not finite.
    """
    where = f"the last good checkpoint is {checkpoints[0]}" if checkpoints else "no checkpoint was made"
    return NonFiniteLossError(f"training stopped at step {step} (epoch {epoch + 1}): {cause}\n{where}\n{ADVICE}")


def in_loss(loss: float) -> str | None:
    """The loss of a batch, if it is not finite."""
    return None if math.isfinite(loss) else f"the loss is {loss}"


def in_gradient(parameters: Iterable[Tensor]) -> str | None:
    """Gradients with entries that are not finite."""
    bad = sum(not bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)
    return f"the gradient of {bad} parameter tensors is not finite" if bad else None


def largest_weight(model: nn.Module) -> float:
    """The largest absolute value of the parameters, at least 1."""
    return max([1.0, *(float(p.detach().abs().max()) for p in model.parameters() if p.numel())])


def in_growth(model: nn.Module, start: float, error: Exception) -> str | None:
    """Weights that have grown out of what an estimate can be made of.

    Args:
        model: whose.
        start: :func:`largest_weight` at the beginning.
        error: of the estimate.
    """
    now = largest_weight(model)
    if now < GROWN * start:
        return None
    return f"the largest weight has grown from {start:.3g} to {now:.3g}, and no estimate can be made there ({error})"


def in_norm(norm: float) -> str | None:
    """The norm that a gradient is clipped by, if it is not finite: all of the gradient would be scaled to 0 or NaN."""
    return None if math.isfinite(norm) else f"the norm of the gradient is {norm}, so it cannot be clipped"


def in_learning_rate(optimizer: Optimizer) -> str | None:
    """A learning rate that is not finite, or with which the loss would be climbed."""
    for group in optimizer.param_groups:
        if not (math.isfinite(rate := float(group["lr"])) and rate >= 0):
            return f"the learning rate is {rate:g}; a schedule must keep it finite and at least 0"
    return None


def in_scores(scores: Mapping[str, float], monitor: str) -> str | None:
    """A validation loss that is not finite, or a number that weights are selected by and that cannot be compared.

    Args:
        scores: by name.
        monitor: the name of that number, with ``validation_`` in front.
    """
    if not math.isfinite(loss := scores.get("loss", 0.0)):
        return f"the loss on the validation split is {loss}"
    return in_monitored(monitor, scores.get(monitor.removeprefix("validation_"), 0.0))


def in_monitored(name: str, value: float) -> str | None:
    """A number that decides on the run and that cannot be compared with others."""
    return f"{name} is {value}, and no weights can be selected by it" if math.isnan(value) else None


def in_weights(model: nn.Module, *, unbounded: Collection[str] = ()) -> str | None:
    """Parameters and buffers that are not finite.

    Args:
        model: whose.
        unbounded: names of buffers that were not from the beginning, such as a mask of minus infinity.
    """
    held = (value for name, value in model.state_dict().items() if name not in unbounded)
    sound = all(bool(torch.isfinite(value).all()) for value in held)
    return None if sound else "a weight or a running statistic is not finite"


def unbounded_buffers(model: nn.Module) -> frozenset[str]:
    """Names of the buffers that hold infinities by their nature: a mask of minus infinity, but no NaN."""
    return frozenset(n for n, b in model.named_buffers() if not b.isfinite().all() and not b.isnan().any())
