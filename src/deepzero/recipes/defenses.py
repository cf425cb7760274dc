"""Recipes of defenses: a denoiser in front of a classifier that can only be queried."""

from __future__ import annotations

from deepzero.recipes.catalogue import Recipe, named
from deepzero.tasks.config import DataConfig
from deepzero.tasks.defense.config import DefenseConfig, DenoiserConfig, StageConfig

DEFAULT = "digits"


def digits() -> DefenseConfig:
    """Digits of 8x8 pixels, a classifier of our own behind a model file, a denoiser of 5 layers of 16 channels."""
    return DefenseConfig(
        data=DataConfig(name="digits", batch_size=64),
        sigma=0.25,
        denoiser=DenoiserConfig(depth=5, width=16),
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


DEFENSES = {
    recipe.name: recipe
    for recipe in (
        Recipe("digits", digits, "minutes on 2 cores"),
        Recipe("cifar10", cifar10, "hours on a CPU"),
    )
}


def find_defense(name: str) -> Recipe[DefenseConfig]:
    """The defense called ``name``.

    Raises:
        InvalidInputError: there is none; the message names the nearest.
    """
    return named(name, DEFENSES, "defense")
