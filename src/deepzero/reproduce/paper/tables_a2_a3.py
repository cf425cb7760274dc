"""Tables A2 and A3 and Fig. A3: how pruning and sparsity patterns compare where first-order SGD trains the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from deepzero.report import Figure
from deepzero.reproduce.cells import Cell, Labels, Training
from deepzero.reproduce.experiment import Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.reproduce.presentation import Curves, accuracy_series, accuracy_table, beside
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

PRUNING = {"random": "random", "FO-GraSP": "fo-grasp", "ZO-GraSP": "zo-grasp"}
"""Name in the table -> score that ranks the weights."""

PATTERNS = {
    "M1": SparsityConfig(ratios="zo-grasp", pattern="alternating"),
    "M2": SparsityConfig(ratios="zo-grasp", pattern="static", prune=True),
    "Smart-Ratio": SparsityConfig(ratios="smart-ratio", every=1, unit="epoch"),
    "ZO-GraSP ratios": SparsityConfig(ratios="zo-grasp", every=1, unit="epoch"),
}
"""Sec. 4 of the paper: M1 ranks anew at every step, M2 prunes at the start, the others draw under layer-wise ratios."""

PERCENT = "pruned, %"


def config(scale: Scale, sparsity: SparsityConfig, seed: int) -> ClassificationConfig:
    """First-order training under a sparsity pattern."""
    return ClassificationConfig(
        data=scale.images,
        model=scale["model"],
        estimator=EstimatorConfig(method="fo"),
        sparsity=sparsity,
        training=TrainingConfig(epochs=scale.epochs, learning_rate=0.1, warmup_epochs=1.0),
        seed=seed,
    )


def pruning_cells(scale: Scale) -> Iterator[Cell]:
    """Every score at every pruning ratio."""
    for seed in range(scale.seeds):
        for percent in scale["percent"]:
            for method, score in PRUNING.items():
                sparsity = SparsityConfig(
                    sparsity=percent / 100,
                    ratios=score,
                    pattern="static",
                    prune=True,
                    queries=scale["queries"],
                    per_class=scale["per_class"],
                )
                labels: Labels = {PERCENT: percent, "method": method, "seed": seed}
                yield Cell(labels=labels, work=Training(config(scale, sparsity, seed)))


def pattern_cells(scale: Scale) -> Iterator[Cell]:
    """Every pattern at every sparsity."""
    for seed in range(scale.seeds):
        for percent in scale["percent"]:
            for method, pattern in PATTERNS.items():
                queries = scale["queries_of_m1"] if method == "M1" else scale["queries"]
                sparsity = replace(pattern, sparsity=percent / 100, queries=queries, per_class=scale["per_class"])
                labels: Labels = {PERCENT: percent, "method": method, "seed": seed}
                yield Cell(labels=labels, work=Training(config(scale, sparsity, seed)))


def present(outcomes: Outcomes, _: Scale, *, published: Curves) -> Presentation:
    """Accuracy by pruning ratio and method."""
    table = accuracy_table(
        outcomes, title="Test accuracy, %", rows=PERCENT, columns="method", published=published, text=lambda p: f"{p} %"
    )
    figure = Figure(
        title="Test accuracy against the part that is left out",
        x_label=PERCENT,
        y_label="test accuracy, %",
        series=accuracy_series(outcomes, x=PERCENT, by="method"),
    )
    return Presentation(tables=[table], figures=beside(figure, published))


def _published(table: Mapping[str, Sequence[float]]) -> Curves:
    return {name: dict(zip(paper.PRUNED, values, strict=True)) for name, values in table.items()}


SMOKE = Scale(
    caption="Digits, 128 images, 1 epoch, a ResNet-8 of 4, 8 and 16 channels.",
    data=DataConfig(name="digits", batch_size=64, limit=128),
    grid={
        "model": ModelConfig(name="resnet8", options={"width": 4}),
        "percent": (50, 80),
        "queries": 4,
        "per_class": 2,
        "queries_of_m1": 2,
    },
)

RESNET20_SMALL = Scale(
    caption=(
        "ResNet-20, CIFAR-10, 5,120 images averaged to 16x16 pixels, 6 epochs, batches of 128, no augmentation; "
        "ZO-GraSP with 64 directions and 10 images a class."
    ),
    data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=16, limit=5120),
    epochs=6,
    seeds=2,
    grid={
        "model": ModelConfig(name="resnet20"),
        "percent": (50, 80, 90, 95),
        "queries": 64,
        "per_class": 10,
        "queries_of_m1": 8,
    },
)

FULL_DATA = DataConfig(name="cifar10", batch_size=128, validation=0.02, padding=4, flip=True)


def _full(model: str) -> Scale:
    return Scale(
        caption=f"{model} on CIFAR-10, 160 epochs, batches of 128, crops and flips (the paper states none of these).",
        data=FULL_DATA,
        epochs=160,
        seeds=3,
        grid={
            "model": ModelConfig(name=model),
            "percent": paper.PRUNED,
            "queries": 192,
            "per_class": 25,
            "queries_of_m1": 192,
        },
    )


TABLE_A2 = Experiment(
    name="tabA2",
    title="Table A2: pruning of ResNet-20",
    scales={"smoke": SMOKE, "small": RESNET20_SMALL, "paper": _full("resnet20")},
    cells=pruning_cells,
    present=partial(present, published=_published(paper.TAB_A2)),
)

TABLE_A3 = Experiment(
    name="tabA3",
    title="Table A3: pruning of ResNet-18",
    scales={
        "smoke": SMOKE,
        "small": Scale(
            caption=(
                "ResNet-18, CIFAR-10, 2,560 images averaged to 8x8 pixels, 6 epochs, batches of 128, no augmentation; "
                "ZO-GraSP with 32 directions and 5 images a class."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=2560),
            epochs=6,
            seeds=2,
            grid={
                "model": ModelConfig(name="resnet18"),
                "percent": (80, 95),
                "queries": 32,
                "per_class": 5,
            },
        ),
        "paper": _full("resnet18"),
    },
    cells=pruning_cells,
    present=partial(present, published=_published(paper.TAB_A3)),
)

FIGURE_A3 = Experiment(
    name="figA3",
    title="Fig. A3: sparsity patterns in the first-order regime",
    scales={
        "smoke": SMOKE,
        "small": replace(
            RESNET20_SMALL,
            caption=f"{RESNET20_SMALL.caption} M1 with 8 directions a step, on the training batch.",
            grid={**RESNET20_SMALL.grid, "percent": (90, 95)},
        ),
        "paper": _full("resnet20"),
    },
    cells=pattern_cells,
    present=partial(present, published={}),
)
