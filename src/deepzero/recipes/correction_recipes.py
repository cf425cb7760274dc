"""Recipes of ``deepzero correct``: a network inside of a simulation that can only be run."""

from __future__ import annotations

from dataclasses import replace

from deepzero.recipes.catalogue import Catalogue, Recipe
from deepzero.tasks.correction import CorrectionConfig, FlowConfig
from deepzero.tasks.correction.correction_config import ZERO

DEFAULT = "wake-small"


def wake_small() -> CorrectionConfig:
    """The paper's wake flows, a network of 2,618 weights, 2 unrolled steps: of a size that two cores can train."""
    return CorrectionConfig(
        widths=(8, 8),
        unroll=2,
        batch_size=1,
        start=ZERO,
        steps=700,
        budget=105_100,  # 700 steps of zo-sol
        learning_rate=1e-3,
        schedule="cosine",
        directions=64,
    )


def wake_tiny() -> CorrectionConfig:
    """A sixteenth of the cells and a few steps, to see that everything works; its errors mean nothing."""
    flow = FlowConfig(resolution=8, warmup=20, frames=12, training=(97.7, 390.6), test=(146.5, 293.0))
    return replace(wake_small(), flow=flow, widths=(2,), batch_size=2, steps=4, budget=500, directions=2)


def wake() -> CorrectionConfig:
    """The paper's setting: 56,898 weights, 16 unrolled steps, ten epochs of Adam at 1e-4, 95 % gradient sparsity."""
    return CorrectionConfig()


RECIPES = Catalogue(
    "correction",
    Recipe("wake-small", wake_small, "minutes on 2 cores, the reference simulations included"),
    Recipe("wake-tiny", wake_tiny, "under a minute"),
    Recipe("wake", wake, "weeks to months on a CPU, by method; not run"),
)
"""Recipes of ``deepzero correct``, by name."""
