"""A network as a sequence of stages: what the paper's feature reuse needs, which caches the input of every block.

A. Chen et al., "DeepZero" (ICLR 2024) reuse features at the granularity of blocks; their ResNet-20 has 12: the first
convolution, its batch norm with ReLU, nine residual blocks, and the pooling with the linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from deepzero.errors import InvalidInputError
from deepzero.models import DigitsCNN, ResNet, SimpleCNN


@dataclass(frozen=True)
class Stage:
    """A part of a network that takes the output of the part before it.

    Attributes:
        name: what it is called in reports.
        modules: names of the submodules whose parameters it uses.
        forward: its part of the network's forward.
    """

    name: str
    modules: tuple[str, ...]
    forward: Callable[[Tensor], Tensor]

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of this name is used here."""
        return any(parameter.startswith(f"{module}.") for module in self.modules)


def split(model: nn.Module) -> list[Stage]:
    """The stages whose composition is the model's forward.

    Raises:
        InvalidInputError: the model is not one that can be split.

    Example:
        >>> from deepzero.models import cifar_resnet
        >>> [stage.name for stage in split(cifar_resnet(20))][:4], len(split(cifar_resnet(20)))
        (['conv1', 'bn1', 'layers.0.0', 'layers.0.1'], 12)
    """
    if isinstance(model, ResNet):
        return _resnet(model)
    if isinstance(model, SimpleCNN):
        blocks = [_part(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
        return [*blocks, Stage("fc", ("fc",), lambda x: model.fc(model.pool(x).flatten(1)))]
    if isinstance(model, DigitsCNN):
        return [*_by_convolution("features", model.features), Stage("fc", ("fc",), lambda x: model.fc(x.flatten(1)))]
    raise InvalidInputError(
        f"{type(model).__name__} has no known split into stages; there are ResNet, SimpleCNN, DigitsCNN"
    )


def _part(name: str, module: nn.Module) -> Stage:
    return Stage(name, (name,), module)


def _resnet(model: ResNet) -> list[Stage]:
    def head(x: Tensor) -> Tensor:
        logits: Tensor = model.fc(F.avg_pool2d(x, x.shape[-2:]).flatten(1))
        return logits

    groups = [cast(nn.Sequential, group) for group in model.layers]
    blocks = [_part(f"layers.{i}.{j}", block) for i, group in enumerate(groups) for j, block in enumerate(group)]
    norm = Stage("bn1", ("bn1",), lambda x: F.relu(model.bn1(x)))
    return [_part("conv1", model.conv1), norm, *blocks, Stage("fc", ("fc",), head)]


def _by_convolution(prefix: str, layers: nn.Sequential) -> list[Stage]:
    """One stage from each convolution up to the next."""
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    ends = [*starts[1:], len(layers)]
    return [
        Stage(f"{prefix}.{start}-{end - 1}", tuple(f"{prefix}.{i}" for i in range(start, end)), layers[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]
