"""Figs. 4 and A4: DeepZero against first-order training, by sparsity, and the course of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deepzero.recipes.classification_recipes import cifar10_resnet20
from deepzero.report import Figure
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import (
    Outcomes,
    Presentation,
    accuracy_figures,
    accuracy_table,
    time_table,
    trajectory,
)
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig, SparsityConfig
from deepzero.training import TrainingConfig

DEEPZERO, DENSE = "DeepZero", "FO, dense"
FO_GRADIENTS, FO_WEIGHTS = "FO, sparse gradients", "FO, sparse weights"
PERCENT = "sparsity, %"


@dataclass(frozen=True, kw_only=True)
class OneNetworkScale(TrainingScale):
    """The scale of an experiment with DeepZero on one network.

    Attributes:
        model: the network.
        training: of every run, but for the epochs.
        every: epochs after which coordinates are redrawn.
    """

    model: ModelConfig
    training: TrainingConfig
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Fig4Scale(OneNetworkScale):
    """The scale of Fig. 4: also the sparsities in percent."""

    percent: tuple[int, ...] = (80, 90, 95, 99)


def deepzero(
    *, data: DataConfig, model: ModelConfig, training: TrainingConfig, every: int, seed: int, sparsity: float = 0.9
) -> ClassificationConfig:
    """A run of DeepZero: coordinate-wise estimates on Smart-Ratio's draws, redrawn every few epochs."""
    return ClassificationConfig(
        data=data,
        model=model,
        estimator=EstimatorConfig(method="cge", step_size=5e-3),
        sparsity=SparsityConfig(sparsity=sparsity, ratios="smart-ratio", every=every, unit="epoch"),
        training=training,
        seed=seed,
    )


def config(scale: Fig4Scale, method: str, percent: int, seed: int) -> ClassificationConfig:
    """A run of one method; Smart-Ratio's draws are those of DeepZero, redrawn as often."""
    ours = deepzero(
        data=scale.data,
        model=scale.model,
        training=replace(scale.training, epochs=scale.epochs),
        every=scale.every,
        seed=seed,
        sparsity=percent / 100,
    )
    if method == DEEPZERO:
        return ours
    pruned = SparsityConfig(sparsity=percent / 100, ratios="fo-grasp", pattern="static", prune=True)
    sparsity = {FO_GRADIENTS: ours.sparsity, FO_WEIGHTS: pruned, DENSE: SparsityConfig()}[method]
    return replace(ours, estimator=EstimatorConfig(method="fo"), sparsity=sparsity)


def cells(scale: Fig4Scale) -> Iterator[Cell]:
    """Every method at every sparsity, and dense training once."""
    for seed in range(scale.seeds):
        yield Cell.trained({PERCENT: 0, "method": DENSE}, config(scale, DENSE, 0, seed))
        for percent in scale.percent:
            for method in (FO_GRADIENTS, FO_WEIGHTS, DEEPZERO):
                yield Cell.trained({PERCENT: percent, "method": method}, config(scale, method, percent, seed))


def present(outcomes: Outcomes, scale: Fig4Scale) -> Presentation:
    """Accuracy and time by sparsity and method; the trajectory at the paper's 90 % or what is nearest."""
    curves = {DENSE: {0: published.FIG4_DENSE}, **published.FIG4}
    text = "{} %".format
    title = "Fig. 4: test accuracy against sparsity"
    percent = min(scale.percent, key=lambda value: abs(value - 90))
    courses = {
        f"DeepZero at {percent} %": outcomes.where(method=DEEPZERO, **{PERCENT: percent}),
        DENSE: outcomes.where(method=DENSE),
    }
    course = Figure(
        title="Fig. A4: the course of training",
        x_label="epoch",
        y_label="validation accuracy, %",
        series=[trajectory(runs, name) for name, runs in courses.items() if len(runs)],
    )
    return Presentation(
        tables=[
            accuracy_table(outcomes, PERCENT, published=curves, text=text),
            time_table(outcomes, PERCENT, text=text),
        ],
        figures=[*accuracy_figures(outcomes, PERCENT, title=title, published=curves), course],
    )


_RECIPE = cifar10_resnet20()

EXPERIMENT = Experiment(
    name="fig4",
    also=("figA4",),
    title="Figs. 4 and A4: DeepZero against first-order training on a residual network",
    scales={
        "smoke": Fig4Scale(
            caption="Digits, 64 images, 2 epochs, a ResNet-8 of 4, 8 and 16 channels.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            epochs=2,
            model=ModelConfig(name="resnet8", options={"width": 4}),
            training=TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
            percent=(80, 90),
        ),
        "small": Fig4Scale(
            caption=(
                "A ResNet-8 of 8, 16 and 32 channels (19,218 parameters), CIFAR-10, 5,120 images averaged to 8x8 "
                "pixels, 6 epochs, batches of 128, no augmentation; coordinates redrawn every epoch."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=5120),
            epochs=6,
            seeds=2,
            model=ModelConfig(name="resnet8", options={"width": 8}),
            training=TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
        ),
        "paper": Fig4Scale(
            caption="ResNet-20 on CIFAR-10, 50 epochs: the paper's recipe.",
            data=_RECIPE.data,
            epochs=_RECIPE.training.epochs,
            seeds=3,
            model=_RECIPE.model,
            training=_RECIPE.training,
            every=5,
        ),
    },
    cells=cells,
    present=present,
)
