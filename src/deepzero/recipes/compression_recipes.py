"""Recipes of ``deepzero compress``: a network that gives its input back through a few numbers."""

from __future__ import annotations

from deepzero.recipes.catalogue import Catalogue, Recipe
from deepzero.tasks.compression import CompressionConfig
from deepzero.tasks.task_config import DataConfig

DEFAULT = "digits"


def digits() -> CompressionConfig:
    """Digits of 8x8 pixels through 8 numbers, by coordinate-wise estimates; sizes are our own choice."""
    return CompressionConfig(data=DataConfig(name="digits", batch_size=64), code=8, steps=300)


def digits_rge() -> CompressionConfig:
    """The same by 64 random directions a step."""
    return CompressionConfig(data=DataConfig(name="digits", batch_size=64), code=8, queries=64, steps=1000)


RECIPES = Catalogue(
    "compression",
    Recipe("digits", digits, "under a minute on 2 cores"),
    Recipe("digits-rge", digits_rge, "under a minute on 2 cores"),
)
"""Recipes of ``deepzero compress``, by name."""
