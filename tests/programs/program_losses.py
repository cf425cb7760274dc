"""The other half of a program: what it computes from outputs and targets, and what changes there between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 3


@dataclass(frozen=True)
class Target:
    """What is minimized.

    Attributes:
        options: ``loss=`` or ``closure=`` as an estimator takes it.
        value: the same as a function of a model, ``x`` and ``y``, as a training loop would write it.
        change: what the user's code does to it between two steps.
        criterion: the loss, if it is a module that may have parameters.
    """

    options: dict[str, Callable[..., Any]]
    value: Callable[[nn.Module, Tensor, Tensor], Any]
    change: Callable[[], None] = lambda: None
    criterion: nn.Module | None = None


def by_loss(loss: Callable[..., Any], change: Callable[[], None] = lambda: None) -> Target:
    criterion = loss if isinstance(loss, nn.Module) else None
    return Target({"loss": loss}, lambda model, x, y: loss(model(x), y), change, criterion)


def by_closure(closure: Callable[..., Any], change: Callable[[], None] = lambda: None) -> Target:
    return Target({"closure": closure}, closure, change)


def cross_entropy(model: nn.Module) -> Target:
    return by_loss(F.cross_entropy)


def per_sample(model: nn.Module) -> Target:
    """Averaged over the samples by the estimator."""
    return by_loss(lambda output, y: F.cross_entropy(output, y, reduction="none") ** 2)


def squared_error(model: nn.Module) -> Target:
    return by_loss(lambda output, y: F.mse_loss(output, F.one_hot(y, CLASSES).to(output.dtype)))


def smoothed(model: nn.Module) -> Target:
    """An attribute of the criterion is annealed."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def change() -> None:
        criterion.label_smoothing += 0.3

    return by_loss(criterion, change)


def reweighted(model: nn.Module) -> Target:
    """Class weights are overwritten in place."""
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))

    def change() -> None:
        criterion.weight.copy_(criterion.weight.flip(0) ** 2)

    return Target({"loss": criterion}, lambda m, x, y: criterion.to(x.dtype)(m(x), y), change, criterion)


def penalized(model: nn.Module) -> Target:
    """A penalty on the parameters, whose weight is a variable of the training loop."""
    strength = 0.1

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y) + strength * sum(p.square().sum() for p in model.parameters())

    def change() -> None:
        nonlocal strength
        strength *= 4

    return by_loss(loss, change)


def scheduled(model: nn.Module) -> Target:
    """A weight in a dictionary that a closure looks up."""
    settings = {"weight": 1.0}

    def closure(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return settings["weight"] * F.cross_entropy(model(x), y) + model(x).square().mean()

    return by_closure(closure, lambda: settings.update(weight=0.3 * settings["weight"]))


def consistent(model: nn.Module) -> Target:
    """A second forward, on another input, inside of the loss."""

    def closure(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) + F.mse_loss(model(x + 0.1), model(x))

    return by_closure(closure)


def anchored(model: nn.Module) -> Target:
    """A distance from copies of the parameters, which move along between steps."""
    anchors: dict[str, Tensor] = {}

    def closure(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        own = dict(model.named_parameters())
        return F.cross_entropy(model(x), y) + sum((own[n] - a.to(x.dtype)).square().sum() for n, a in anchors.items())

    def change() -> None:
        anchors["head.bias"] = torch.full((CLASSES,), 0.3 + 0.1 * len(anchors))
        anchors.update({n: 0.5 * a for n, a in anchors.items()})

    return by_closure(closure, change)


class LearnedTemperature(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output * self.scale, y)


def learned(model: nn.Module) -> Target:
    return by_loss(LearnedTemperature())


def number(model: nn.Module) -> Target:
    """A Python number, as scores of other libraries are."""
    return by_closure(lambda model, x, y: float(F.cross_entropy(model(x), y)))


def margin(model: nn.Module) -> Target:
    """A curriculum: samples with a large loss are left out, by a condition in Python."""
    limit = 0.5

    def closure(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(model(x), y, reduction="none")
        kept = losses[losses < limit]
        return kept.mean() if len(kept) else losses.mean()

    def change() -> None:
        nonlocal limit
        limit += 0.5

    return by_closure(closure, change)


TARGETS: dict[str, Callable[[nn.Module], Target]] = {
    target.__name__: target
    for target in (
        cross_entropy,
        per_sample,
        squared_error,
        smoothed,
        reweighted,
        penalized,
        scheduled,
        consistent,
        anchored,
        learned,
        number,
        margin,
    )
}
