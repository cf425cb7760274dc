"""Tables A2 and A3: accuracy of networks that are pruned before first-order SGD trains them, by score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import Curves, Outcomes, Presentation, accuracy_figures, accuracy_table
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig, SparsityConfig
from deepzero.training import TrainingConfig

PRUNING = {"random": "random", "FO-GraSP": "fo-grasp", "ZO-GraSP": "zo-grasp"}
"""Name in the table -> score that ranks the weights."""

PERCENT = "pruned, %"


@dataclass(frozen=True, kw_only=True)
class PruningScale(TrainingScale):
    """The scale of Tables A2 and A3.

    Attributes:
        model: the network.
        percent: parts of the weights that are left out.
        queries: directions of ZO-GraSP.
        per_class: images of each class for the scores.
    """

    model: ModelConfig
    percent: tuple[int, ...]
    queries: int
    per_class: int


def config(scale: PruningScale, sparsity: SparsityConfig, seed: int) -> ClassificationConfig:
    """First-order training under a sparsity pattern."""
    return ClassificationConfig(
        data=scale.data,
        model=scale.model,
        estimator=EstimatorConfig(method="fo"),
        sparsity=sparsity,
        training=TrainingConfig(epochs=scale.epochs, learning_rate=0.1, warmup_epochs=1.0),
        seed=seed,
    )


def cells(scale: PruningScale) -> Iterator[Cell]:
    """Every score at every pruning ratio."""
    for seed in range(scale.seeds):
        for percent in scale.percent:
            for method, score in PRUNING.items():
                sparsity = SparsityConfig(
                    sparsity=percent / 100,
                    ratios=score,
                    pattern="static",
                    prune=True,
                    queries=scale.queries,
                    per_class=scale.per_class,
                )
                yield Cell.trained({PERCENT: percent, "method": method}, config(scale, sparsity, seed))


def present(outcomes: Outcomes, _: PruningScale, *, curves: Curves) -> Presentation:
    """Accuracy by pruning ratio and method."""
    title = "Test accuracy against the part that is left out"
    return Presentation(
        tables=[accuracy_table(outcomes, PERCENT, published=curves, text="{} %".format)],
        figures=accuracy_figures(outcomes, PERCENT, title=title, published=curves),
    )


def _curves(table: Mapping[str, Sequence[float]]) -> Curves:
    return {name: dict(zip(published.PRUNED, values, strict=True)) for name, values in table.items()}


SMOKE = PruningScale(
    caption="Digits, 128 images, 1 epoch, a ResNet-8 of 4, 8 and 16 channels.",
    data=DataConfig(name="digits", batch_size=64, limit=128),
    model=ModelConfig(name="resnet8", options={"width": 4}),
    percent=(50, 80),
    queries=4,
    per_class=2,
)

RESNET20_SMALL = PruningScale(
    caption=(
        "ResNet-20, CIFAR-10, 5,120 images averaged to 16x16 pixels, 6 epochs, batches of 128, no augmentation; "
        "ZO-GraSP with 64 directions and 10 images a class."
    ),
    data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=16, limit=5120),
    epochs=6,
    seeds=2,
    model=ModelConfig(name="resnet20"),
    percent=(50, 80, 90, 95),
    queries=64,
    per_class=10,
)

RESNET18_SMALL = PruningScale(
    caption=(
        "ResNet-18, CIFAR-10, 2,560 images averaged to 8x8 pixels, 6 epochs, batches of 128, no augmentation; "
        "ZO-GraSP with 32 directions and 5 images a class."
    ),
    data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=2560),
    epochs=6,
    seeds=2,
    model=ModelConfig(name="resnet18"),
    percent=(80, 95),
    queries=32,
    per_class=5,
)


def full(model: str) -> PruningScale:
    """The paper's settings for a network."""
    return PruningScale(
        caption=f"{model} on CIFAR-10, 160 epochs, batches of 128, crops and flips (the paper states none of these).",
        data=DataConfig(name="cifar10", batch_size=128, validation=0.02, padding=4, flip=True),
        epochs=160,
        seeds=3,
        model=ModelConfig(name=model),
        percent=published.PRUNED,
        queries=192,
        per_class=25,
    )


TABLE_A2 = Experiment(
    name="tabA2",
    title="Table A2: pruning of ResNet-20",
    scales={"smoke": SMOKE, "small": RESNET20_SMALL, "paper": full("resnet20")},
    cells=cells,
    present=partial(present, curves=_curves(published.TAB_A2)),
)

TABLE_A3 = Experiment(
    name="tabA3",
    title="Table A3: pruning of ResNet-18",
    scales={"smoke": SMOKE, "small": RESNET18_SMALL, "paper": full("resnet18")},
    cells=cells,
    present=partial(present, curves=_curves(published.TAB_A3)),
)
