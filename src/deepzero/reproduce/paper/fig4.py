"""Figs. 4 and A4: DeepZero against first-order training, by sparsity, and the course of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deepzero.recipes.classification_recipes import cifar10_resnet20
from deepzero.report import Figure
from deepzero.reproduce.cells import Cell, Labels, Training
from deepzero.reproduce.experiment import Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.reproduce.presentation import accuracy_series, accuracy_table, beside, time_table, trajectory
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

DEEPZERO, DENSE = "DeepZero", "FO, dense"
PERCENT = "sparsity, %"


def config(scale: Scale, method: str, percent: int, seed: int) -> ClassificationConfig:
    """A run of one method; Smart-Ratio's draws are those of DeepZero, redrawn as often."""
    draws = SparsityConfig(sparsity=percent / 100, ratios="smart-ratio", every=scale["every"], unit="epoch")
    estimator, sparsity = {
        DEEPZERO: (EstimatorConfig(method="cge", step_size=5e-3), draws),
        "FO, sparse gradients": (EstimatorConfig(method="fo"), draws),
        "FO, sparse weights": (
            EstimatorConfig(method="fo"),
            SparsityConfig(sparsity=percent / 100, ratios="fo-grasp", pattern="static", prune=True),
        ),
        DENSE: (EstimatorConfig(method="fo"), SparsityConfig()),
    }[method]
    return ClassificationConfig(
        data=scale.images,
        model=scale["model"],
        estimator=estimator,
        sparsity=sparsity,
        training=replace(scale["training"], epochs=scale.epochs),
        seed=seed,
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method at every sparsity, and dense training once."""
    for seed in range(scale.seeds):
        yield Cell(labels={PERCENT: 0, "method": DENSE, "seed": seed}, work=Training(config(scale, DENSE, 0, seed)))
        for percent in scale["percent"]:
            for method in ("FO, sparse gradients", "FO, sparse weights", DEEPZERO):
                labels: Labels = {PERCENT: percent, "method": method, "seed": seed}
                yield Cell(labels=labels, work=Training(config(scale, method, percent, seed)))


def present(outcomes: Outcomes, scale: Scale) -> Presentation:
    """Accuracy and time by sparsity and method; the trajectory at the paper's 90 % or what is nearest."""
    published = {DENSE: {0: paper.FIG4_DENSE}, **paper.FIG4}
    text = "{} %".format
    tables = [
        accuracy_table(
            outcomes, title="Test accuracy, %", rows=PERCENT, columns="method", published=published, text=text
        ),
        time_table(outcomes, title="Time of a run", rows=PERCENT, columns="method", text=text),
    ]
    bars = Figure(
        title="Fig. 4: test accuracy against sparsity",
        x_label=PERCENT,
        y_label="test accuracy, %",
        series=accuracy_series(outcomes, x=PERCENT, by="method"),
    )
    percent = min(scale["percent"], key=lambda value: abs(value - 90))
    curves = [
        trajectory(of, name)
        for name, of in (
            (f"DeepZero at {percent} %", outcomes.where(method=DEEPZERO, **{PERCENT: percent})),
            (DENSE, outcomes.where(method=DENSE)),
        )
        if len(of)
    ]
    course = Figure(
        title="Fig. A4: the course of training", x_label="epoch", y_label="validation accuracy, %", series=curves
    )
    return Presentation(tables=tables, figures=[*beside(bars, published), course])


def _paper_scale() -> Scale:
    recipe = cifar10_resnet20()
    return Scale(
        caption="ResNet-20 on CIFAR-10, 50 epochs: the paper's recipe.",
        data=recipe.data,
        epochs=recipe.training.epochs,
        seeds=3,
        grid={"model": recipe.model, "training": recipe.training, "percent": (80, 90, 95, 99), "every": 5},
    )


EXPERIMENT = Experiment(
    name="fig4",
    also=("figA4",),
    title="Figs. 4 and A4: DeepZero against first-order training on a residual network",
    scales={
        "smoke": Scale(
            caption="Digits, 64 images, 2 epochs, a ResNet-8 of 4, 8 and 16 channels.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            epochs=2,
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 4}),
                "training": TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
                "percent": (80, 90),
                "every": 1,
            },
        ),
        "small": Scale(
            caption=(
                "A ResNet-8 of 8, 16 and 32 channels (19,218 parameters), CIFAR-10, 5,120 images averaged to 8x8 "
                "pixels, 6 epochs, batches of 128, no augmentation; coordinates redrawn every epoch."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=5120),
            epochs=6,
            seeds=2,
            grid={
                "model": ModelConfig(name="resnet8", options={"width": 8}),
                "training": TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
                "percent": (80, 90, 95, 99),
                "every": 1,
            },
        ),
        "paper": _paper_scale(),
    },
    cells=cells,
    present=present,
)
