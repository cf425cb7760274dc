"""Scores of a model on a split: loss, accuracy, and other metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepzero.errors import InvalidInputError
from deepzero.evaluators.workers import parallel_map
from deepzero.objective import Loss, NetworkObjective, mean_loss

Metric = Callable[[Tensor, Tensor], Any]
"""``metric(outputs, targets)`` over a whole split: a number, or a tensor of one."""


@dataclass(frozen=True)
class Scores:
    """Accuracy in [0, 1] and mean loss over a split."""

    accuracy: float
    loss: float

    def better_than(self, other: Scores | None) -> bool:
        """Higher accuracy; among equals, lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> Scores:
    """Accuracy and loss of ``model`` in eval mode; afterwards every module is in the mode it was in.

    On a CPU several batches are evaluated at a time, one thread each, so that scores do not depend on how many threads
    there are.

    Args:
        model: gives logits ``[N, classes]``.
        batches: ``(x, y)`` with labels ``y`` of shape ``[N]``.
        loss: ``loss(output, target)``, averaged over the split.

    Raises:
        InvalidInputError: there is no batch.
    """

    def score(batch: tuple[Tensor, Tensor]) -> tuple[int, float, int]:
        x, y = batch
        output = model(x)
        return int((output.argmax(1) == y).sum()), float(mean_loss(loss, output, y)) * len(y), len(y)

    correct, summed, total = 0, 0.0, 0
    remaining, workers = iter(batches), torch.get_num_threads()
    with eval_mode(model):
        while group := list(itertools.islice(remaining, workers)):
            for right, losses, count in parallel_map(score, group, workers, group[0][0].device):
                correct, summed, total = correct + right, summed + losses, total + count
    if total == 0:
        raise InvalidInputError("the split to evaluate on is empty; give it at least one example")
    return Scores(correct / total, summed / total)


def measured(
    objective: NetworkObjective, batches: Iterable[tuple[Any, ...]], metrics: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    """Mean loss and metrics of a network in eval mode, for any problem; its modes are as before afterwards.

    Args:
        objective: the network with its loss or closure.
        batches: arguments of the program; for ``loss=...`` they are ``(x, y)``.
        metrics: functions of all outputs and all targets of the split, by name, such as those of torchmetrics. None:
            ``accuracy`` where outputs are ``[n, classes]`` and targets ``[n]``, whole numbers from 0.

    Returns:
        ``loss``, the mean over the split (batches count by their length), then the metrics.

    Raises:
        InvalidInputError: there is no batch, or metrics are asked for where there are no outputs and targets.

    Example:
        >>> import torch.nn.functional as F
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> split = [(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))]
        >>> measured(NetworkObjective(model, F.cross_entropy), split)["accuracy"]
        0.5
    """
    if metrics and objective.closure is not None:
        raise InvalidInputError(
            "metrics are functions of outputs and targets, which a closure keeps to itself; use loss=..., or give "
            "validation a function of the model that returns numbers by name"
        )
    total, count = 0.0, 0
    outputs: list[Any] = []
    targets: list[Any] = []
    with eval_mode(objective.model), torch.no_grad():
        for batch in batches:
            size = _size(batch)
            if objective.closure is not None:
                value = objective.program(objective.model, *batch)
            else:
                x, y = batch
                output = objective.model(x)
                value = mean_loss(objective.loss, output, y)
                if metrics or (metrics is None and _are_classes(output, y)):
                    outputs.append(output)
                    targets.append(y)
            total, count = total + float(value) * size, count + size
    if count == 0:
        raise InvalidInputError("the split to evaluate on is empty; give it at least one example")
    return {"loss": total / count, **_scores(outputs, targets, metrics)}


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Part of the targets that the largest output along dimension 1 names.

    Args:
        outputs: ``[n, classes, ...]``.
        targets: ``[n, ...]``, classes from 0.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    return float((outputs.argmax(1) == targets).double().mean())


def lower_is_better(name: str) -> bool:
    """True if a number by this name is to fall: losses and errors are, all else is to rise.

    Example:
        >>> lower_is_better("validation_loss"), lower_is_better("validation_f1")
        (True, False)
    """
    return any(word in name.lower() for word in ("loss", "error", "perplexity", "mse", "mae", "rmse"))


def _size(batch: tuple[Any, ...]) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    return len(tensors[0]) if tensors else 1


def _scores(outputs: list[Any], targets: list[Any], metrics: Mapping[str, Metric] | None) -> dict[str, float]:
    if not outputs:
        return {}
    if not all(isinstance(part, Tensor) for part in (*outputs, *targets)):
        raise InvalidInputError(
            f"metrics need outputs and targets that are tensors, got {type(outputs[0]).__name__} and "
            f"{type(targets[0]).__name__}; give validation a function of the model that returns numbers by name"
        )
    metrics = {"accuracy": accuracy} if metrics is None else metrics
    output, target = torch.cat(outputs), torch.cat(targets)
    scores = {}
    for name, metric in metrics.items():
        scores[name] = float(metric(output, target))
        if math.isnan(scores[name]):
            raise InvalidInputError(f"the metric {name!r} is NaN on the validation data; see what it does there")
        if callable(reset := getattr(metric, "reset", None)):  # torchmetrics adds up over calls
            reset()
    return scores


def _are_classes(output: Any, target: Any) -> bool:
    """True if they can only be scores of classes and the numbers of the true ones."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or target.dtype != torch.int64:
        return False
    if output.dim() != 2 or target.shape != output.shape[:1] or output.shape[1] < 2 or not len(target):
        return False
    return bool(target.min() >= 0) and bool(target.max() < output.shape[1])


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode for a block; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
