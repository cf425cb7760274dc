"""Images in [0, 1] with fresh Gaussian noise, in the batches of a stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepzero import data, validation
from deepzero.randomness import derive_seed

CLEAN, LABEL, NOISY = "clean", "label", "noisy"
TARGETS = (CLEAN, LABEL, NOISY)


def pixels(dataset: data.Dataset) -> data.Dataset:
    """The same images, not normalized: a loader gives values in [0, 1]."""
    channels = dataset.image_shape[0]
    return replace(dataset, mean=(0.0,) * channels, std=(1.0,) * channels)


@dataclass(frozen=True)
class NoisyBatches:
    """Batches of a stage, each with fresh noise; a pure function of the stage's seed and the step.

    They form one epoch of ``steps`` batches, whatever the number of images.

    Attributes:
        loader: of images in [0, 1].
        sigma: of the noise; 0 for none.
        steps: batches.
        target: of a noisy image: the ``clean`` image, the loader's ``label``, or the ``noisy`` image itself.
        seed: of the noise.
    """

    loader: data.BatchLoader
    sigma: float
    steps: int
    target: str
    seed: int

    @classmethod
    def of(
        cls, images: data.Dataset, *, batch_size: int, sigma: float, steps: int, target: str, seed: int
    ) -> NoisyBatches:
        """Shuffled batches of a data set; smaller ones if it has fewer images."""
        size = min(batch_size, len(images))
        loader = data.BatchLoader(pixels(images), batch_size=size, shuffle=True, drop_last=True, seed=seed)
        return cls(loader, sigma, steps, target, seed)

    def __post_init__(self) -> None:
        validation.choice("target", self.target, TARGETS)

    def __len__(self) -> int:
        return self.steps

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Noisy images and their target."""
        x, y = self.loader.batch(*divmod(epoch * self.steps + index, len(self.loader)))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "noise", epoch, index))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        noisy = x + self.sigma * noise
        return noisy, {CLEAN: x, LABEL: y, NOISY: noisy}[self.target]
