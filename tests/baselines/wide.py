"""The eight-layer network and every step of its backward pass written out, without autograd and without the package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from deepzero import data, models

STRIDES = (1, 1, 1, 2, 1, 2, 1)
Gradients = dict[str, Tensor]


def make(width: int = 4, seed: int = 3) -> nn.Module:
    return models.build("wide_cnn", width=width, in_channels=1, image_size=8, seed=seed).double()


def digits(count: int = 24) -> tuple[Tensor, Tensor]:
    train, _ = data.load_digits()
    return train.inputs[:count].double() / 16, train.labels[:count]


def moved(model: nn.Module, by: float = 0.5) -> nn.Module:
    """The model with weights and biases that are no longer the initial ones."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Layer:
    """A hidden layer: its input, its normalized map and the scale that it was divided by."""

    name: str
    weight: Tensor
    stride: int
    x: Tensor
    y: Tensor
    scale: Tensor

    @property
    def pads(self) -> tuple[int, int, int, int]:
        return (0, 1, 0, 1) if self.stride == 2 else (1, 1, 1, 1)

    def receives(self, error: Tensor) -> Gradients:
        """Gradients of weight and bias when the normalized map receives ``error``."""
        before = self.before_norm(error)
        padded = F.pad(self.x, self.pads)
        weight = conv2d_weight(padded, self.weight.shape, before, self.stride) / math.sqrt(9 * self.x.shape[1])
        return {f"{self.name}.weight": weight, f"{self.name}.bias": before.sum((0, 2, 3))}

    def before_norm(self, error: Tensor) -> Tensor:
        return (error - error.mean(0) - self.y * (self.y * error).mean(0)) / self.scale

    def passes_down(self, error: Tensor, weight: Tensor) -> Tensor:
        """The error of the layer's input, through ``weight``."""
        padded = F.pad(self.x, self.pads)
        down = conv2d_input(padded.shape, weight, self.before_norm(error), self.stride) / math.sqrt(9 * self.x.shape[1])
        top = self.pads[2]
        return down[:, :, top : top + self.x.shape[2], top : top + self.x.shape[3]]


def forward(model: nn.Module, x: Tensor) -> tuple[list[Layer], Tensor, Tensor]:
    """The hidden layers, the pooled maps and the logits."""
    values = {name: p.detach() for name, p in model.named_parameters()}
    layers = []
    for i, stride in enumerate(STRIDES):
        name, weight = f"convs.{i}", values[f"convs.{i}.weight"]
        padded = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        z = F.conv2d(padded, weight, stride=stride) / math.sqrt(9 * x.shape[1]) + values[f"{name}.bias"][:, None, None]
        scale = (z.var(0, unbiased=False) + 1e-6).sqrt()
        layers.append(Layer(name, weight, stride, x, (z - z.mean(0)) / scale, scale))
        x = layers[-1].y.clamp(min=0)
    features = x.mean((2, 3))
    return layers, features, features @ values["fc.weight"].T / math.sqrt(features.shape[1]) + values["fc.bias"]


def error_at(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean of ``(logits - (one-hot - 1/10))^2``."""
    return 2 * (logits - (torch.eye(10, dtype=logits.dtype)[labels] - 0.1)) / logits.numel()


def top(features: Tensor, error: Tensor) -> Gradients:
    """Gradients of the last layer."""
    return {"fc.weight": error.T @ features / math.sqrt(features.shape[1]), "fc.bias": error.sum(0)}


def errors_down(layers: list[Layer], weights: nn.Module, error: Tensor) -> list[Tensor]:
    """The error of every normalized map, first layer first, when the error of the logits goes down through ``weights``."""
    values = {name: p.detach() for name, p in weights.named_parameters()}
    last = layers[-1].y
    down = error @ values["fc.weight"] / math.sqrt(last.shape[1])
    down = (down / last[0, 0].numel())[:, :, None, None].expand_as(last)
    errors = []
    for layer in reversed(layers):
        errors.append(down * (layer.y > 0))
        down = layer.passes_down(errors[-1], values[f"{layer.name}.weight"])
    return errors[::-1]


def received(layers: list[Layer], errors: list[Tensor]) -> Gradients:
    return {k: v for layer, error in zip(layers, errors, strict=True) for k, v in layer.receives(error).items()}


def assert_same(model: nn.Module, expected: Gradients, **tolerance: float) -> None:
    assert sorted(expected) == sorted(name for name, _ in model.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def gradient(model: nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters()}
