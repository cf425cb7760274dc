"""The parts of a defense: images in [0, 1], noisy batches, networks, and the classifier as it can be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deepzero import data
from deepzero.models import DnCNN, UNetDenoiser
from deepzero.randomness import derive_seed
from deepzero.tasks.defense.defense_config import DefenseConfig, DenoiserConfig
from deepzero.tasks.training_stage import StageConfig

Scores = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n classes"]]


def pixels(dataset: data.Dataset) -> data.Dataset:
    """The same images, not normalized: a loader gives values in [0, 1]."""
    channels = dataset.image_shape[0]
    return replace(dataset, mean=(0.0,) * channels, std=(1.0,) * channels)


class Normalized(nn.Module):
    """A classifier that normalizes what it gets, so that noise is added in units of pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, dataset: data.Dataset) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(dataset.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(dataset.std).reshape(-1, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def student_network(dataset: data.Dataset, width: int = 32) -> nn.Module:
    """A small convolutional classifier without batch statistics, for images in [0, 1]."""
    channels = dataset.image_shape[0]
    layers: list[nn.Module] = []
    for inward, outward, stride in ((channels, width, 1), (width, width, 2), (width, 2 * width, 2)):
        layers += [nn.Conv2d(inward, outward, 3, stride=stride, padding=1), nn.GroupNorm(4, outward), nn.GELU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, dataset.num_classes)]
    return Normalized(nn.Sequential(*layers), dataset)


def make_denoiser(config: DenoiserConfig, channels: int) -> DnCNN | UNetDenoiser:
    """The network in front of the classifier, at initial weights."""
    if config.kind == "unet":
        return UNetDenoiser(channels=channels, width=config.width)
    return DnCNN(channels=channels, depth=config.depth, width=config.width)


@dataclass(frozen=True)
class NoisyBatches:
    """Batches of a stage, each with fresh noise; a pure function of the stage's seed and the step.

    They form one epoch of ``steps`` batches, whatever the number of images.

    Attributes:
        loader: of images in [0, 1].
        sigma: of the noise; 0 for none.
        steps: batches.
        clean: the target is the clean image; else the loader's label.
        seed: of the noise.
    """

    loader: data.BatchLoader
    sigma: float
    steps: int
    clean: bool
    seed: int

    def __len__(self) -> int:
        return self.steps

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Noisy images and their target."""
        x, y = self.loader.batch(*divmod(epoch * self.steps + index, len(self.loader)))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "noise", epoch, index))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x + self.sigma * noise, x if self.clean else y


def batches(
    config: DefenseConfig,
    stage: StageConfig,
    images: data.Dataset,
    *,
    name: str,
    steps: int,
    clean: bool,
    sigma: float | None = None,
) -> NoisyBatches:
    """The batches of a stage."""
    seed = derive_seed(config.seed, name) % 2**31
    size = min(stage.batch_size, len(images))
    loader = data.BatchLoader(pixels(images), batch_size=size, shuffle=True, drop_last=True, seed=seed)
    return NoisyBatches(loader, config.sigma if sigma is None else sigma, steps, clean, seed)


def answers(scores: Scores, images: data.Dataset, batch: int = 500) -> Int64[Tensor, " n"]:
    """The classifier's label of every clean image: a query an image."""
    loader = data.BatchLoader(pixels(images), batch_size=batch)
    with torch.no_grad():
        return torch.cat([scores(x).argmax(1).cpu() for x, _ in loader.iterate()])


def accuracy(scores: Scores, images: data.Dataset) -> float:
    """The share of clean images whose label a classifier gives."""
    return float((answers(scores, images) == images.labels.cpu()).double().mean())
