"""Table 1: DeepZero against feedback alignment, direct feedback alignment and input-weight alignment, by width."""

from __future__ import annotations

from collections.abc import Iterator

from deepzero.report import Figure, Table
from deepzero.reproduce.cells import Cell, Labels, Training
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import published as paper
from deepzero.reproduce.presentation import SPREAD, accuracy_series, beside
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.training import TrainingConfig

DEEPZERO, BACKPROPAGATION = "DeepZero", "backpropagation"
RULES = {
    "FA": "fa",
    "DFA": "dfa",
    "Align-ada": "align-ada",
    "Align-prop": "align-prop",
    "Align-zero": "align-zero",
    BACKPROPAGATION: "fo",
}
"""Name in the table -> method; all of these train as Boopathy & Fiete do."""


def config(scale: Scale, method: str, width: int, seed: int) -> ClassificationConfig:
    """A run of one method on the 8-layer CNN."""
    deepzero = method == DEEPZERO
    return ClassificationConfig(
        data=scale.images,
        model=ModelConfig(name="wide_cnn", options={"width": width}),
        estimator=EstimatorConfig(method="cge", step_size=5e-3) if deepzero else EstimatorConfig(method=RULES[method]),
        sparsity=SparsityConfig(sparsity=0.9, ratios="smart-ratio", every=scale["every"], unit="epoch")
        if deepzero
        else SparsityConfig(),
        loss="cross-entropy" if deepzero else "squared-error",
        training=_deepzero_training(scale) if deepzero else _plain_training(scale),
        seed=seed,
    )


def _deepzero_training(scale: Scale) -> TrainingConfig:
    """SGD with momentum and a cosine; weights of unit variance take a larger learning rate than Kaiming's."""
    return TrainingConfig(
        epochs=scale["epochs of DeepZero"], learning_rate=scale["learning rate of DeepZero"], warmup_epochs=1.0
    )


def _plain_training(scale: Scale) -> TrainingConfig:
    """Plain SGD at a constant rate, as Boopathy & Fiete's code has it."""
    return TrainingConfig(
        epochs=scale.epochs,
        learning_rate=scale["learning rate"],
        momentum=0.0,
        weight_decay=0.0,
        warmup_epochs=0.0,
        schedule="constant",
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method at its widths."""
    for seed in range(scale.seeds):
        for method, widths in scale["widths"].items():
            for width in widths:
                labels: Labels = {"method": method, "width": width, "seed": seed}
                yield Cell(labels=labels, work=Training(config(scale, method, width, seed)))


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Accuracy, time and parameters by method and width."""
    rows = []
    for method in outcomes.labelled("method"):
        of = outcomes.where(method=method)
        for width in sorted(of.labelled("width")):
            runs = of.where(width=width)
            rows.append([method, f"{width:,}", f"{runs[0].result['parameters']:,}", runs.percent(), runs.duration()])
    rows += [
        [f"{method}, paper", f"{width:,}", MISSING, f"{accuracy:.2f}", f"{paper.TAB1_HOURS[method][width]:.2f} h"]
        for method, curve in paper.TAB1.items()
        for width, accuracy in curve.items()
    ]
    table = Table(
        title="Test accuracy by method and width",
        columns=["method", "width", "parameters", "test accuracy, %", "time of a run"],
        rows=rows,
        note=f"{SPREAD} DeepZero trains on the cross-entropy, the others on the squared error, as their authors do.",
    )
    figure = Figure(
        title="Test accuracy against width",
        x_label="width",
        y_label="test accuracy, %",
        series=accuracy_series(outcomes, x="width", by="method"),
        x_log=True,
    )
    return Presentation(tables=[table], figures=beside(figure, paper.TAB1))


def _of_all(*widths: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(RULES, widths)


EXPERIMENT = Experiment(
    name="tab1",
    title="Table 1: training without backpropagation, 8-layer CNN",
    scales={
        "smoke": Scale(
            caption="Digits, 64 images, 1 epoch, widths of 4.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            grid={
                "widths": {DEEPZERO: (4,), **_of_all(4)},
                "epochs of DeepZero": 1,
                "learning rate of DeepZero": 3.0,
                "learning rate": 5.0,
                "every": 1,
            },
        ),
        "small": Scale(
            caption=(
                "CIFAR-10, 5,000 images averaged to 16x16 pixels, batches of 100, 20 epochs (DeepZero: 5), no "
                "augmentation."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02, image_size=16, limit=5000),
            epochs=20,
            seeds=2,
            grid={
                "widths": {DEEPZERO: (8,), **_of_all(16)},
                "epochs of DeepZero": 5,
                "learning rate of DeepZero": 3.0,
                "learning rate": 5.0,
                "every": 1,
            },
        ),
        "paper": Scale(
            caption="CIFAR-10, batches of 100, 150 epochs (DeepZero: 50), no augmentation.",
            data=DataConfig(name="cifar10", batch_size=100),
            epochs=150,
            seeds=3,
            grid={
                "widths": {DEEPZERO: (32, 64), **_of_all(64, 512)},
                "epochs of DeepZero": 50,
                "learning rate of DeepZero": 3.0,
                "learning rate": 5.0,
                "every": 5,
            },
        ),
    },
    cells=cells,
    present=present,
)
