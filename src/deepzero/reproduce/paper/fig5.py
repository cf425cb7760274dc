"""Fig. 5: DeepZero against Pattern Search, by number of training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deepzero import models
from deepzero.measure.image_batches import image_shape
from deepzero.report import Figure, Series
from deepzero.reproduce.cells import Cell, Labels, Training
from deepzero.reproduce.experiment import Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.presentation import accuracy_series, accuracy_table, query_table, time_table
from deepzero.sparsity import random_coordinates, smart_ratio
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

SPARSITY = 0.9
IMAGES = "training images"
SEARCHES = {"Pattern Search": "pattern-search", "Pattern Search, fast": "pattern-search-fast"}

SEARCH_TRAINING = TrainingConfig(
    learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0.0, schedule="constant"
)
"""A step of SGD makes exactly the move that was found."""


def queries_of_step(scale: Scale) -> int:
    """Perturbed losses of a step of DeepZero, which is what Pattern Search gets for each batch too."""
    channels, _ = image_shape(scale.images.name)
    network = models.build(scale["model"].name, in_channels=channels, **scale["model"].options)
    return random_coordinates(network, smart_ratio(network, SPARSITY)).count


def config(scale: Scale, method: str, images: int, seed: int) -> ClassificationConfig:
    """A run of one method on so many images."""
    if method == "DeepZero":
        estimator = EstimatorConfig(method="cge", step_size=5e-3)
        sparsity = SparsityConfig(sparsity=SPARSITY, ratios="smart-ratio", every=5, unit="epoch")
        training = TrainingConfig(epochs=scale.epochs, learning_rate=0.1, warmup_epochs=1.0)
    else:
        estimator = EstimatorConfig(
            method=SEARCHES[method], options={"queries": queries_of_step(scale), "evaluator": "sequential"}
        )
        sparsity = SparsityConfig()
        training = replace(SEARCH_TRAINING, epochs=scale.epochs)
    return ClassificationConfig(
        data=replace(scale.images, limit=images),
        model=scale["model"],
        estimator=estimator,
        sparsity=sparsity,
        training=replace(training, evaluate_every=scale["evaluate_every"]),
        seed=seed,
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method at every sample size."""
    for seed in range(scale.seeds):
        for images in scale["images"]:
            for method in ("DeepZero", *SEARCHES):
                labels: Labels = {IMAGES: images, "method": method, "seed": seed}
                yield Cell(labels=labels, work=Training(config(scale, method, images, seed)))


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Accuracy and time by number of images."""
    text = "{:,}".format
    tables = [
        accuracy_table(outcomes, title="Test accuracy, %", rows=IMAGES, columns="method", text=text, note=NOTE),
        time_table(outcomes, title="Time of a run", rows=IMAGES, columns="method", text=text),
        query_table(outcomes, title="Queries of a run", rows=IMAGES, columns="method", text=text),
    ]
    accuracy = Figure(
        title="Test accuracy against the number of training images",
        x_label=IMAGES,
        y_label="test accuracy, %",
        series=accuracy_series(outcomes, x=IMAGES, by="method"),
        x_log=True,
    )
    time = Figure(
        title="Time against the number of training images",
        x_label=IMAGES,
        y_label="seconds of a run",
        series=[_times(outcomes.where(method=method), method) for method in outcomes.labelled("method")],
        x_log=True,
        y_log=True,
    )
    return Presentation(tables=tables, figures=[accuracy, time])


def _times(runs: Outcomes, method: str) -> Series:
    images = sorted(runs.labelled(IMAGES))
    return Series(name=method, x=images, y=[runs.where(**{IMAGES: n}).mean("seconds") or 0.0 for n in images])


NOTE = (
    "An epoch is a pass over the images in batches. For each batch Pattern Search polls within as many queries as "
    "DeepZero makes, by full forwards as its authors do: the first improvement is taken, or (fast) the best move of "
    "the poll. The paper's values are only in a plot."
)

EXPERIMENT = Experiment(
    name="fig5",
    title="Fig. 5: DeepZero and Pattern Search, by number of training images",
    scales={
        "smoke": Scale(
            caption="Digits, a ResNet-8 of 4, 8 and 16 channels, 1 epoch.",
            data=DataConfig(name="digits", batch_size=16),
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 4}),
                "images": (16, 32),
                "evaluate_every": 1,
            },
        ),
        "small": Scale(
            caption=(
                "A ResNet-8 of 4, 8 and 16 channels (5,006 parameters), CIFAR-10 averaged to 8x8 pixels, 8 epochs, "
                "batches of 100, no augmentation."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02, image_size=8),
            epochs=8,
            seeds=2,
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 4}),
                "images": (100, 500, 1000, 2000),
                "evaluate_every": 2,
            },
        ),
        "paper": Scale(
            caption="ResNet-20 on CIFAR-10, 40 epochs, batches of 100, no augmentation (the paper states neither).",
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02),
            epochs=40,
            seeds=3,
            grid={
                "model": ModelConfig(name="resnet20"),
                "images": (100, 500, 1000, 2000, 4000, 8000, 16_000, 32_000),
                "evaluate_every": 1,
            },
        ),
    },
    cells=cells,
    present=present,
)
