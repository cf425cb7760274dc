"""The loop with the paper's feature reuse: a query starts at the block that holds its coordinate.

A. Chen et al., "DeepZero" (ICLR 2024) cache the input of every block; their ResNet-20 has 12 blocks: the first
convolution, its batch norm with ReLU, nine residual blocks, and the pooling with the linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.measure.cases import Problem
from deepzero.measure.naive_loop import PLAIN, EntryMove, Form, entry_of
from deepzero.models import DigitsCNN, ResNet, SimpleCNN


@dataclass(frozen=True)
class Block:
    """A part of a network that takes the output of the part before it.

    Attributes:
        name: its name in reports.
        modules: names of the submodules whose parameters it uses.
        forward: its part of the network's forward.
    """

    name: str
    modules: tuple[str, ...]
    forward: Callable[[Tensor], Tensor]

    def owns(self, parameter: str) -> bool:
        """True if a parameter of this name is used here."""
        return any(parameter.startswith(f"{module}.") for module in self.modules)


def split(model: nn.Module) -> list[Block]:
    """The blocks whose composition is the model's forward.

    Raises:
        InvalidInputError: the model is not one that can be split.

    Example:
        >>> from deepzero.models import cifar_resnet
        >>> [block.name for block in split(cifar_resnet(20))][:4], len(split(cifar_resnet(20)))
        (['conv1', 'bn1', 'layers.0.0', 'layers.0.1'], 12)
    """
    if isinstance(model, ResNet):
        return _resnet(model)
    if isinstance(model, SimpleCNN):
        blocks = [_part(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
        return [*blocks, Block("fc", ("fc",), lambda x: model.fc(model.pool(x).flatten(1)))]
    if isinstance(model, DigitsCNN):
        return [*_by_convolution("features", model.features), Block("fc", ("fc",), lambda x: model.fc(x.flatten(1)))]
    raise InvalidInputError(
        f"{type(model).__name__} has no known split into blocks; there are ResNet, SimpleCNN, DigitsCNN"
    )


def splittable(model: nn.Module) -> bool:
    """True if :func:`split` knows the blocks of a model."""
    return isinstance(model, ResNet | SimpleCNN | DigitsCNN)


def _part(name: str, module: nn.Module) -> Block:
    return Block(name, (name,), module)


def _resnet(model: ResNet) -> list[Block]:
    def head(x: Tensor) -> Tensor:
        logits: Tensor = model.fc(F.avg_pool2d(x, x.shape[-2:]).flatten(1))
        return logits

    groups = [cast(nn.Sequential, group) for group in model.layers]
    blocks = [_part(f"layers.{i}.{j}", block) for i, group in enumerate(groups) for j, block in enumerate(group)]
    norm = Block("bn1", ("bn1",), lambda x: F.relu(model.bn1(x)))
    return [_part("conv1", model.conv1), norm, *blocks, Block("fc", ("fc",), head)]


def _by_convolution(prefix: str, layers: nn.Sequential) -> list[Block]:
    """One block from each convolution up to the next."""
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    ends = [*starts[1:], len(layers)]
    return [
        Block(f"{prefix}.{start}-{end - 1}", tuple(f"{prefix}.{i}" for i in range(start, end)), layers[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


class BlockReuseLoop:
    """One forward from the moved block on for every query.

    The input of each block is cached by one base forward; only the block of the moved entry and those behind it are
    computed again.

    Args:
        problem: network, batch and step size.
        form: of the forwards.

    Attributes:
        parameters: the parameters of the copy that is moved, by name.
        blocks: the blocks.
        base: the loss at the parameters, in the precision of the forward.
    """

    def __init__(self, problem: Problem, form: Form = PLAIN) -> None:
        model = form.copy(problem.model)
        self.parameters = dict(model.named_parameters())
        self.step_size = problem.step_size
        self.blocks = split(model)
        self._form = form
        self._x, self._y = form.inputs(problem.batch[0]), problem.batch[1]
        self._owner = {
            name: next(i for i, block in enumerate(self.blocks) if block.owns(name)) for name in self.parameters
        }
        self._inputs: list[Tensor] = []
        self.base = self.refresh()

    def refresh(self) -> float:
        """The base forward, which fills the cache."""
        self._inputs = [self._x]
        with self._form.active():
            for block in self.blocks[:-1]:
                self._inputs.append(block.forward(self._inputs[-1]))
        return self._loss_from(len(self.blocks) - 1).item()

    def block_of(self, name: str) -> int:
        """The position of the block that holds a parameter."""
        return self._owner[name]

    def query(self, name: str, index: int) -> Tensor:
        """The loss with the entry of a flat index moved by the step; a GPU may still be at work on it."""
        move = EntryMove.by(self.step_size, entry_of(self.parameters[name], index))
        return move.loss(partial(self._loss_from, self._owner[name]))

    def difference(self, name: str, index: int) -> float:
        """One query, minus the base loss."""
        return self.query(name, index).item() - self.base

    def _loss_from(self, start: int) -> Tensor:
        value = self._inputs[start]
        with self._form.active():
            for block in self.blocks[start:]:
                value = block.forward(value)
            return F.cross_entropy(value, self._y)
