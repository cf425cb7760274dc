"""Recipes of ``deepzero train``: classifiers of scikit-learn's digits, CIFAR-10 and Fashion-MNIST.

The digits, 1,797 images of 8x8 pixels, come with the installation; the user provides the files of the other sets.
"""

from __future__ import annotations

from dataclasses import replace

from deepzero.recipes.catalogue import Catalogue, Recipe
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

DEFAULT = "digits"
CIFAR10_CROP = 4


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


def cifar10_cnn(*, depth: int = 5) -> ClassificationConfig:
    """The depth-adjustable CNN on which the paper compares estimators (its Fig. 2), dense, on CIFAR-10.

    Chen et al., 2024 state 50 epochs of SGD with a cosine; settings that they leave open are as in their main recipe.

    Args:
        depth: number of blocks, 1 to 5: 730, 3,700, 6,670, 9,640 or 12,610 parameters.
    """
    return ClassificationConfig(
        data=DataConfig(name="cifar10", batch_size=256, padding=CIFAR10_CROP, flip=True),
        model=ModelConfig(name="simple_cnn", options={"depth": depth}),
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        training=TrainingConfig(epochs=50, learning_rate=0.1),
    )


def cifar10_resnet20() -> ClassificationConfig:
    """The paper's main recipe: ResNet-20 on CIFAR-10 at 90 % gradient sparsity.

    Chen et al., 2024 and their code: 50 epochs, batches of 256 (the last one partial), SGD with learning rate 0.1,
    momentum 0.9 and weight decay 5e-4, 3 epochs of warm-up and a cosine, step size 5e-3, coordinates redrawn every 5
    epochs. Two departures: the ratios are Smart-Ratio's, which needs no data, and 2 % of the training images are held
    out to select weights by (the paper's code selects on the test set).
    """
    return ClassificationConfig(
        data=DataConfig(
            name="cifar10", batch_size=256, validation=0.02, padding=CIFAR10_CROP, flip=True, drop_last=False
        ),
        model=ModelConfig(name="resnet20"),
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=0.9, ratios="smart-ratio", every=5, unit="epoch"),
        training=TrainingConfig(epochs=50, learning_rate=0.1, momentum=0.9, weight_decay=5e-4, warmup_epochs=3.0),
    )


def fashion_mnist_cnn(*, depth: int = 4) -> ClassificationConfig:
    """The depth-adjustable CNN on Fashion-MNIST, sparse, under our own rule for coordinates.

    They are redrawn at every step, under Smart-Ratio's ratios divided by the square root of the cost of a query: at
    equal time a step this gained 4 to 7 points over the paper's schedule on such networks (the page "Reproduction",
    coordinate schedules). For deep residual networks plain Smart-Ratio, redrawn at every step, is better.

    Args:
        depth: number of blocks, 1 to 4 on images of 28x28 pixels.
    """
    return ClassificationConfig(
        data=DataConfig(name="fashion-mnist", batch_size=256, padding=2, flip=True),
        model=ModelConfig(name="simple_cnn", options={"depth": depth}),
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=0.9, ratios="cost-aware", exponent=0.5, weights="smart-ratio"),
        training=TrainingConfig(epochs=20, learning_rate=0.1, warmup_epochs=1.0),
    )


RECIPES = Catalogue(
    "recipe",
    Recipe("digits", digits, "under 3 minutes on 2 cores"),
    Recipe("digits-dense", digits_dense, "minutes on 2 cores"),
    Recipe("fashion-mnist-cnn", fashion_mnist_cnn, "hours on a CPU"),
    Recipe("cifar10-cnn", cifar10_cnn, "days on a CPU, hours on a GPU; less with --depth 1 to 4"),
    Recipe("cifar10-resnet20", cifar10_resnet20, "days on a GPU"),
)
"""Recipes of ``deepzero train``, by name."""


def find(name: str) -> Recipe[ClassificationConfig]:
    """The recipe called ``name``.

    Raises:
        InvalidInputError: there is none; the message names the nearest.

    Example:
        >>> find("digits").config().sparsity.sparsity
        0.9
    """
    return RECIPES.find(name)
