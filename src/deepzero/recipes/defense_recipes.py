"""Recipes of ``deepzero defend``: a denoiser in front of a classifier that can only be queried."""

from __future__ import annotations

from dataclasses import replace

from deepzero.recipes.catalogue import Catalogue, Recipe
from deepzero.tasks.classification import DataConfig
from deepzero.tasks.defense.defense_config import DEEPZERO, DefenseConfig, DenoiserConfig
from deepzero.tasks.task_config import StageConfig

DEFAULT = "digits"
RATES = {DEEPZERO: 0.3}
"""Learning rates of methods in units of the recipe's, where the recipe's is not the best of 0.1, 0.3, 1 and 3 times."""


def digits() -> DefenseConfig:
    """Digits of 8x8 pixels, a classifier of our own behind a model file, a denoiser of 5 layers of 32 channels."""
    return DefenseConfig(
        data=DataConfig(name="digits", batch_size=64),
        sigma=0.35,
        denoiser=DenoiserConfig(depth=5, width=32),
        autoencoder="digits-32",
        classifier=StageConfig(steps=800, batch_size=64),
        pretraining=StageConfig(steps=1500, batch_size=64),
        finetuning=StageConfig(learning_rate=1e-3, batch_size=64),
        budget=1_000_000,
        directions=32,
    )


def cifar10() -> DefenseConfig:
    """CIFAR-10 with a denoiser of 7 layers of 32 channels: of a size that a CPU can train."""
    return DefenseConfig(
        data=DataConfig(name="cifar10", batch_size=64),
        sigma=0.25,
        denoiser=DenoiserConfig(depth=7, width=32),
        autoencoder="cifar10-192",
        classifier=StageConfig(steps=8000, batch_size=128),
        pretraining=StageConfig(steps=6000, batch_size=64),
        finetuning=StageConfig(learning_rate=1e-4, batch_size=64),
        budget=3_000_000,
        directions=192,
    )


def cifar10_full() -> DefenseConfig:
    """CIFAR-10 with the denoiser of the literature: 17 layers of 64 channels, for a GPU."""
    return DefenseConfig(
        data=DataConfig(name="cifar10", batch_size=256),
        sigma=0.25,
        autoencoder="cifar10-192",
        classifier=StageConfig(steps=20_000, batch_size=128),
        pretraining=StageConfig(steps=90 * 175, batch_size=256, schedule="thirds"),
        finetuning=StageConfig(learning_rate=1e-5, batch_size=256, schedule="fifths"),
        budget=20 * 175 * 256 * 193,
        directions=192,
    )


def imagenet10() -> DefenseConfig:
    """Ten classes of ImageNet from a folder of images, the paper's 1,152 queries an estimate and 20 epochs; for a GPU.

    The paper states neither the noise nor the batch; both are those of Zhang et al. (ICLR 2022), the latter reduced.
    """
    return DefenseConfig(
        data=DataConfig(name="image-folder", batch_size=64),
        sigma=0.25,
        autoencoder="imagenet-1152",
        classifier=StageConfig(steps=20_000, batch_size=64),
        pretraining=StageConfig(steps=90 * 140, batch_size=64, schedule="thirds"),
        finetuning=StageConfig(learning_rate=1e-5, batch_size=64, schedule="fifths"),
        budget=20 * 140 * 64 * 1153,
        directions=1152,
    )


RECIPES = Catalogue(
    "defense",
    Recipe("digits", digits, "about 2 minutes on 2 cores, certification included"),
    Recipe("cifar10", cifar10, "hours on a CPU: 3 million queries"),
    Recipe("cifar10-full", cifar10_full, "for a GPU, not run"),
    Recipe("imagenet10", imagenet10, "for a GPU, not run"),
)
"""Recipes of ``deepzero defend``, by name."""


def with_method(config: DefenseConfig, method: str) -> DefenseConfig:
    """A recipe by another method, at the learning rate that was found best for it.

    Raises:
        InvalidInputError: there is no such method.
    """
    changed = replace(config, method=method)
    factor = RATES.get(method, 1.0)
    return replace(
        changed, finetuning=replace(config.finetuning, learning_rate=factor * config.finetuning.learning_rate)
    )
