"""Accuracy by number of random directions a step: a comparison of our own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deepzero.reproduce.cells import Cell, Labels
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.presentation import (
    Outcomes,
    Presentation,
    accuracy_figures,
    accuracy_table,
    query_table,
    time_table,
)
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig
from deepzero.training import TrainingConfig

DIRECTIONS = "directions a step"
NOTE = "An epoch has as many steps whatever the directions, so function values grow with them."


@dataclass(frozen=True, kw_only=True)
class QueryStudyScale(TrainingScale):
    """The scale of the study of queries.

    Attributes:
        model: the network.
        directions: of a step.
        learning_rate: of SGD, at its peak.
        distributions: of the directions, each the name of a method here.
    """

    model: ModelConfig
    directions: tuple[int, ...]
    learning_rate: float = 0.02
    distributions: tuple[str, ...] = ("gaussian", "sphere")


def config(scale: QueryStudyScale, distribution: str, directions: int, seed: int) -> ClassificationConfig:
    """A run by random estimates."""
    return ClassificationConfig(
        data=scale.data,
        model=scale.model,
        estimator=EstimatorConfig(method="rge", step_size=5e-3, queries=directions, distribution=distribution),
        training=TrainingConfig(epochs=scale.epochs, learning_rate=scale.learning_rate, warmup_epochs=1.0),
        seed=seed,
    )


def cells(scale: QueryStudyScale) -> Iterator[Cell]:
    """Every distribution at every number of directions."""
    for seed in range(scale.seeds):
        for directions in scale.directions:
            for distribution in scale.distributions:
                labels: Labels = {DIRECTIONS: directions, "method": distribution}
                yield Cell.trained(labels, config(scale, distribution, directions, seed))


def present(outcomes: Outcomes, _: QueryStudyScale) -> Presentation:
    """Accuracy, queries and time by number of directions."""
    title = "Test accuracy against the directions of a step"
    return Presentation(
        tables=[
            accuracy_table(outcomes, DIRECTIONS, note=NOTE),
            query_table(outcomes, DIRECTIONS),
            time_table(outcomes, DIRECTIONS),
        ],
        figures=accuracy_figures(outcomes, DIRECTIONS, title=title, x_log=True),
    )


_CNN = ModelConfig(name="simple_cnn", options={"depth": 1})

EXPERIMENT = Experiment(
    name="queries",
    title="Random directions: accuracy by their number a step (our own)",
    scales={
        "smoke": QueryStudyScale(
            caption="Digits, 64 images of 8x8 pixels, 1 epoch.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            model=_CNN,
            directions=(2, 8),
        ),
        "small": QueryStudyScale(
            caption="CIFAR-10, 5,120 images averaged to 8x8 pixels, 5 epochs, no augmentation, the CNN of depth 1.",
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=5120),
            epochs=5,
            seeds=2,
            model=_CNN,
            directions=(8, 32, 128, 512),
        ),
        "paper": QueryStudyScale(
            caption="CIFAR-10, 50 epochs, no augmentation, the CNN of depth 1.",
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02),
            epochs=50,
            seeds=3,
            model=_CNN,
            directions=(8, 32, 128, 512, 730),
        ),
    },
    cells=cells,
    present=present,
)
