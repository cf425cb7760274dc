"""What people write without this library: one forward per coordinate, plain or with features reused block by block.

Both work on a copy of the model, so that its running statistics, which such a loop moves at every query, stay here.
Both can be written in several forms (memory format, grad mode, oneDNN): see :mod:`deepzero.measure.forms`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deepzero.measure.cases import Problem
from deepzero.measure.forms import Form
from deepzero.measure.network_stages import split


class Loop(Protocol):
    """Answers one query at a time."""

    def difference(self, name: str, index: int) -> float:
        """The loss with one entry of a parameter moved by the step, minus the base loss."""
        ...


PLAIN = Form()


class NaiveLoop:
    """A full forward in train mode for every coordinate.

    Args:
        problem: what is queried.
        form: how its forwards run.

    Attributes:
        base: the loss at the parameters, as float32 gives it.
    """

    def __init__(self, problem: Problem, form: Form = PLAIN) -> None:
        self.form = form
        self.model = form.copy(problem.model)
        self.parameters = dict(self.model.named_parameters())
        self.step_size = problem.step_size
        self.x, self.y = form.images(problem.batch[0]), problem.batch[1]
        self.base = self.loss()

    def loss(self) -> float:
        """One forward."""
        with self.form.active():
            return F.cross_entropy(self.model(self.x), self.y).item()

    def difference(self, name: str, index: int) -> float:
        """One query."""
        return _moved(self.parameters[name], index, self.step_size, self.loss) - self.base


class BlockReuseLoop:
    """The same with the paper's feature reuse: a query starts at the block that holds its coordinate.

    The input of each block is cached by one base forward; only that block and those behind it are computed again.

    Args:
        problem: what is queried.
        form: how its forwards run.

    Attributes:
        stages: the blocks.
        base: the loss at the parameters, as float32 gives it.
    """

    def __init__(self, problem: Problem, form: Form = PLAIN) -> None:
        self.form = form
        model = form.copy(problem.model)
        self.parameters = dict(model.named_parameters())
        self.step_size = problem.step_size
        self.x, self.y = form.images(problem.batch[0]), problem.batch[1]
        self.stages = split(model)
        self._owner = {name: next(i for i, s in enumerate(self.stages) if s.owns(name)) for name in self.parameters}
        self._inputs: list[Tensor] = []
        self.base = self.refresh()

    def refresh(self) -> float:
        """The base forward, which fills the cache."""
        self._inputs = [self.x]
        with self.form.active():
            for stage in self.stages[:-1]:
                self._inputs.append(stage.forward(self._inputs[-1]))
        return self._loss_from(len(self.stages) - 1)

    def stage_of(self, name: str) -> int:
        """The position of the stage that holds a parameter."""
        return self._owner[name]

    def difference(self, name: str, index: int) -> float:
        """One query."""
        start = self._owner[name]
        return _moved(self.parameters[name], index, self.step_size, lambda: self._loss_from(start)) - self.base

    def _loss_from(self, start: int) -> float:
        value = self._inputs[start]
        with self.form.active():
            for stage in self.stages[start:]:
                value = stage.forward(value)
            return F.cross_entropy(value, self.y).item()


@torch.no_grad()
def _moved(parameter: Tensor, index: int, step: float, loss: Callable[[], float]) -> float:
    """The loss with one entry moved in place; the entry is put back as it was, not by subtracting the step."""
    entry = _entry(parameter, index)
    saved = entry.item()
    entry.add_(step)
    value = loss()
    entry.fill_(saved)
    return value


def _entry(parameter: Tensor, index: int) -> Tensor:
    """The entry with a flat index, as a 0-dim view, in whatever memory format the parameter lies."""
    offset = parameter.storage_offset()
    for size, stride in zip(reversed(parameter.shape), reversed(parameter.stride()), strict=True):
        index, place = divmod(index, size)
        offset += place * stride
    return parameter.as_strided((), (), offset)
