"""How good a model is on a split."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.evaluators.workers import parallel_map
from deepzero.objective import Loss, mean_loss


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
