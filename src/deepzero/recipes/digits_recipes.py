"""Recipes for scikit-learn's digits: 1,797 images of 8x8 pixels, which come with the installation."""

from __future__ import annotations

from dataclasses import replace

from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig


def digits() -> ClassificationConfig:
    """The whole DeepZero pipeline on a batch-norm network of 4,954 parameters.

    ZO-GraSP scores the weights once, at the start; its layer-wise ratios at 90 % gradient sparsity then hold for the
    run, and the coordinates are redrawn under them at every step (the paper redraws every 5 epochs; under difference
    propagation a new draw costs nothing, and it trains better).
    """
    return ClassificationConfig(
        data=DataConfig(name="digits", batch_size=64),
        model=ModelConfig(name="digits_cnn"),
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=0.9, ratios="zo-grasp", every=1, unit="step"),
        training=TrainingConfig(epochs=20, learning_rate=0.1, warmup_epochs=1.0),
    )


def digits_dense() -> ClassificationConfig:
    """The same network with every coordinate queried at every step."""
    return replace(digits(), sparsity=SparsityConfig(sparsity=0.0))
