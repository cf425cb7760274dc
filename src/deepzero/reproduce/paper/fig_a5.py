"""Fig. A5: accuracy and time of DeepZero, by batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deepzero.recipes.classification_recipes import cifar10_resnet20
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Labels, Training
from deepzero.reproduce.experiment import Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.presentation import accuracy_series
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

BATCH = "batch size"


def config(scale: Scale, size: int, seed: int) -> ClassificationConfig:
    """DeepZero at 90 % sparsity with batches of one size; all else is the same."""
    return ClassificationConfig(
        data=replace(scale.images, batch_size=size),
        model=scale["model"],
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=0.9, ratios="smart-ratio", every=scale["every"], unit="epoch"),
        training=replace(scale["training"], epochs=scale.epochs),
        seed=seed,
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """Every batch size."""
    for seed in range(scale.seeds):
        for size in scale["sizes"]:
            labels: Labels = {BATCH: size, "method": "DeepZero", "seed": seed}
            yield Cell(labels=labels, work=Training(config(scale, size, seed)))


def present(outcomes: Outcomes, scale: Scale) -> Presentation:
    """Accuracy and minutes of an epoch by batch size."""
    sizes = sorted(outcomes.labelled(BATCH))
    runs = {size: outcomes.where(**{BATCH: size}) for size in sizes}
    minutes = {size: (of.mean("seconds") or 0.0) / scale.epochs / 60 for size, of in runs.items()}
    table = Table(
        title="Accuracy and time",
        columns=[BATCH, "test accuracy, %", "minutes an epoch", "steps"],
        rows=[
            [f"{size:,}", of.percent(), f"{minutes[size]:.2f}", f"{of[0].result['steps']:,}"]
            for size, of in runs.items()
        ],
        note=(
            "Mean ± standard deviation (runs), validation included in the time. The paper: 60 minutes an epoch from a "
            "batch size of 512 on, and a marked loss of accuracy above 2,048, on four V100."
        ),
    )
    accuracy = Figure(
        title="Test accuracy against batch size",
        x_label=BATCH,
        y_label="test accuracy, %",
        series=accuracy_series(outcomes, x=BATCH, by="method"),
        x_log=True,
    )
    time = Figure(
        title="Time against batch size",
        x_label=BATCH,
        y_label="minutes an epoch",
        series=[Series(name="DeepZero", x=sizes, y=list(minutes.values()))],
        x_log=True,
    )
    return Presentation(tables=[table], figures=[accuracy, time])


def _paper_scale() -> Scale:
    recipe = cifar10_resnet20()
    return Scale(
        caption="ResNet-20 on CIFAR-10, 50 epochs: the paper's recipe but for the batch size.",
        data=recipe.data,
        epochs=recipe.training.epochs,
        seeds=3,
        grid={
            "model": recipe.model,
            "training": recipe.training,
            "sizes": (128, 256, 512, 1024, 2048, 4096),
            "every": 5,
        },
    )


EXPERIMENT = Experiment(
    name="figA5",
    title="Fig. A5: DeepZero by batch size",
    scales={
        "smoke": Scale(
            caption="Digits, 64 images, 1 epoch, a ResNet-8 of 4, 8 and 16 channels.",
            data=DataConfig(name="digits", limit=64),
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 4}),
                "training": TrainingConfig(learning_rate=0.1, warmup_epochs=0.0),
                "sizes": (16, 32),
                "every": 1,
            },
        ),
        "small": Scale(
            caption=(
                "A ResNet-8 of 4, 8 and 16 channels (5,006 parameters), CIFAR-10, 5,120 images averaged to 8x8 pixels, "
                "5 epochs, no augmentation."
            ),
            data=DataConfig(name="cifar10", validation=0.02, image_size=8, limit=5120),
            epochs=5,
            seeds=2,
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 4}),
                "training": TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
                "sizes": (64, 128, 256, 512, 1024),
                "every": 1,
            },
        ),
        "paper": _paper_scale(),
    },
    cells=cells,
    present=present,
)
