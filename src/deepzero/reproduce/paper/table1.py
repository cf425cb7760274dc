"""Table 1: DeepZero against feedback alignment, direct feedback alignment and input-weight alignment, by width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deepzero.report import Table
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Epochs, Experiment, TrainingScale
from deepzero.reproduce.paper import fig4, published
from deepzero.reproduce.presentation import MISSING, SPREAD, Outcomes, Presentation, accuracy_figures
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig
from deepzero.training import TrainingConfig

RULES = {
    "FA": "fa",
    "DFA": "dfa",
    "Align-ada": "align-ada",
    "Align-prop": "align-prop",
    "Align-zero": "align-zero",
    "backpropagation": "fo",
}
"""Name in the table -> method; all of these train as Boopathy & Fiete do."""


@dataclass(frozen=True, kw_only=True)
class Table1Scale(TrainingScale):
    """The scale of Table 1.

    Attributes:
        widths: of the network, for all methods but DeepZero.
        deepzero_widths: of the network, for DeepZero.
        deepzero_epochs: passes of DeepZero over the training images.
        every: epochs after which DeepZero's coordinates are redrawn.
    """

    widths: tuple[int, ...]
    deepzero_widths: tuple[int, ...]
    deepzero_epochs: Epochs
    every: int = 1


def _network(width: int) -> ModelConfig:
    return ModelConfig(name="wide_cnn", options={"width": width})


def deepzero(scale: Table1Scale, width: int, seed: int) -> ClassificationConfig:
    """SGD with momentum and a cosine; weights of unit variance take a larger learning rate than Kaiming's."""
    training = TrainingConfig(epochs=scale.deepzero_epochs, learning_rate=3.0, warmup_epochs=1.0)
    return fig4.deepzero(data=scale.data, model=_network(width), training=training, every=scale.every, seed=seed)


def rule(data: DataConfig, method: str, *, width: int, epochs: int, seed: int) -> ClassificationConfig:
    """Plain SGD at a constant rate on the squared error, as Boopathy & Fiete's code has it."""
    return ClassificationConfig(
        data=data,
        model=_network(width),
        estimator=EstimatorConfig(method=RULES[method]),
        loss="squared-error",
        training=TrainingConfig(
            epochs=epochs,
            learning_rate=5.0,
            momentum=0.0,
            weight_decay=0.0,
            warmup_epochs=0.0,
            schedule="constant",
        ),
        seed=seed,
    )


def cells(scale: Table1Scale) -> Iterator[Cell]:
    """Every method at its widths."""
    for seed in range(scale.seeds):
        for width in scale.deepzero_widths:
            yield Cell.trained({"method": fig4.DEEPZERO, "width": width}, deepzero(scale, width, seed))
        for method in RULES:
            for width in scale.widths:
                config = rule(scale.data, method, width=width, epochs=scale.epochs, seed=seed)
                yield Cell.trained({"method": method, "width": width}, config)


def present(outcomes: Outcomes, _: Table1Scale) -> Presentation:
    """Accuracy, time and parameters by method and width."""
    rows = [
        [method, f"{width:,}", f"{runs[0].result['parameters']:,}", runs.percent(), runs.duration()]
        for method, widths in outcomes.by("method").items()
        for width, runs in widths.by("width").items()
    ]
    rows += [
        [f"{method}, paper", f"{width:,}", MISSING, f"{accuracy:.2f}", f"{published.TAB1_HOURS[method][width]:.2f} h"]
        for method, curve in published.TAB1.items()
        for width, accuracy in curve.items()
    ]
    table = Table(
        title="Test accuracy by method and width",
        columns=["method", "width", "parameters", "test accuracy, %", "time of a run"],
        rows=rows,
        note=f"{SPREAD} DeepZero trains on the cross-entropy, the others on the squared error, as their authors do.",
    )
    title = "Test accuracy against width"
    figures = accuracy_figures(outcomes, "width", title=title, x_log=True, published=published.TAB1)
    return Presentation(tables=[table], figures=figures)


EXPERIMENT = Experiment(
    name="tab1",
    title="Table 1: training without backpropagation, 8-layer CNN",
    scales={
        "smoke": Table1Scale(
            caption="Digits, 64 images, 1 epoch, widths of 4.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            widths=(4,),
            deepzero_widths=(4,),
            deepzero_epochs=1,
        ),
        "small": Table1Scale(
            caption=(
                "CIFAR-10, 5,000 images averaged to 16x16 pixels, batches of 100, 20 epochs (DeepZero: 5), no "
                "augmentation."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02, image_size=16, limit=5000),
            epochs=20,
            seeds=2,
            widths=(16,),
            deepzero_widths=(8,),
            deepzero_epochs=5,
        ),
        "paper": Table1Scale(
            caption="CIFAR-10, batches of 100, 150 epochs (DeepZero: 50), no augmentation.",
            data=DataConfig(name="cifar10", batch_size=100),
            epochs=150,
            seeds=3,
            widths=(64, 512),
            deepzero_widths=(32, 64),
            deepzero_epochs=50,
            every=5,
        ),
    },
    cells=cells,
    present=present,
)
