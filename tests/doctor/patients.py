"""Models and black boxes with a known complaint."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz
from deepzero.objective import BlackBox


def batch(examples: int = 16, features: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(examples, features, generator=generator)
    return x, torch.randint(0, classes, (examples,), generator=generator)


def seeded(model: Any) -> Any:
    """Weights that do not depend on the global generator."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def healthy() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)))


class Fluttering(nn.Module):
    """Draws from a generator that nobody seeds anew."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.scale = scale
        self.generator = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + self.scale * float(self.generator.normal()))


class Unruled(nn.Module):
    """An operation for which there is no difference rule, behind every parameter or behind one layer only."""

    def __init__(self, *, at_the_end: bool) -> None:
        super().__init__()
        self.first, self.last, self.at_the_end = nn.Linear(6, 8), nn.Linear(8, 3), at_the_end

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        if self.at_the_end:
            return torch.logcumsumexp(self.last(hidden), 1)
        return self.last(torch.logcumsumexp(hidden, 1))


class Scaled(nn.Module):
    """A scale that passes through a Python number: differences cannot be followed behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        return self.last(hidden.tanh()) * hidden.square().mean().item()


class Branching(nn.Module):
    """Control flow that depends on data: cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Any) -> Tensor | None:
        out = self.linear(x)
        return out * 2 if out.sum() > 0 else out


class Jumping(nn.Module):
    """Sign activations: autograd gives 0 for the first layer, function values do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x: Any) -> Any:
        return torch.sign(self.first(x))[:, :3]


class Straight(torch.autograd.Function):
    """A backward that has nothing to do with the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sin(3 * x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(self.linear(x))


CUBE_SLOPE = np.array([3.0, 12.0])


def cube() -> BlackBox:
    """The sum of cubes at (1, 2), in float64: slope 3 w^2, curvature 6 w, third derivative 6."""
    return dz.BlackBox(lambda p: float(np.sum(p["w"] ** 3)), {"w": np.array([1.0, 2.0])})


LOSS = F.cross_entropy
