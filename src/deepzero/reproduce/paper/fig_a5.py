"""Fig. A5: accuracy and time of DeepZero, by batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deepzero.recipes.classification_recipes import cifar10_resnet20
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Experiment
from deepzero.reproduce.paper import fig4
from deepzero.reproduce.presentation import Outcomes, Presentation, accuracy_figures
from deepzero.tasks.classification import ClassificationConfig, DataConfig, ModelConfig
from deepzero.training import TrainingConfig

BATCH = "batch size"


@dataclass(frozen=True, kw_only=True)
class FigA5Scale(fig4.OneNetworkScale):
    """The scale of Fig. A5: also the batch sizes."""

    sizes: tuple[int, ...]


def config(scale: FigA5Scale, size: int, seed: int) -> ClassificationConfig:
    """DeepZero at 90 % sparsity with batches of one size; all else is the same."""
    return fig4.deepzero(
        data=replace(scale.data, batch_size=size),
        model=scale.model,
        training=replace(scale.training, epochs=scale.epochs),
        every=scale.every,
        seed=seed,
    )


def cells(scale: FigA5Scale) -> Iterator[Cell]:
    """Every batch size."""
    for seed in range(scale.seeds):
        for size in scale.sizes:
            yield Cell.trained({BATCH: size, "method": fig4.DEEPZERO}, config(scale, size, seed))


def present(outcomes: Outcomes, scale: FigA5Scale) -> Presentation:
    """Accuracy and minutes of an epoch by batch size."""
    runs = outcomes.by(BATCH)
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
    time = Figure(
        title="Time against batch size",
        x_label=BATCH,
        y_label="minutes an epoch",
        series=[Series(name=fig4.DEEPZERO, x=list(minutes), y=list(minutes.values()))],
        x_log=True,
    )
    accuracy = accuracy_figures(outcomes, BATCH, title="Test accuracy against batch size", x_log=True)
    return Presentation(tables=[table], figures=[*accuracy, time])


_RECIPE = cifar10_resnet20()

EXPERIMENT = Experiment(
    name="figA5",
    title="Fig. A5: DeepZero by batch size",
    scales={
        "smoke": FigA5Scale(
            caption="Digits, 64 images, 1 epoch, a ResNet-8 of 4, 8 and 16 channels.",
            data=DataConfig(name="digits", limit=64),
            model=ModelConfig(name="resnet8", options={"width": 4}),
            training=TrainingConfig(learning_rate=0.1, warmup_epochs=0.0),
            sizes=(16, 32),
        ),
        "small": FigA5Scale(
            caption=(
                "A ResNet-8 of 4, 8 and 16 channels (5,006 parameters), CIFAR-10, 5,120 images averaged to 8x8 pixels, "
                "5 epochs, no augmentation."
            ),
            data=DataConfig(name="cifar10", validation=0.02, image_size=8, limit=5120),
            epochs=5,
            seeds=2,
            model=ModelConfig(name="resnet8", options={"width": 4}),
            training=TrainingConfig(learning_rate=0.1, warmup_epochs=1.0),
            sizes=(64, 128, 256, 512, 1024),
        ),
        "paper": FigA5Scale(
            caption="ResNet-20 on CIFAR-10, 50 epochs: the paper's recipe but for the batch size.",
            data=_RECIPE.data,
            epochs=_RECIPE.training.epochs,
            seeds=3,
            model=_RECIPE.model,
            training=_RECIPE.training,
            sizes=(128, 256, 512, 1024, 2048, 4096),
            every=5,
        ),
    },
    cells=cells,
    present=present,
)
