"""Fig. 1D: what training without backpropagation reaches, by method and number of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Training
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.paper import fig4 as sparsities
from deepzero.reproduce.paper import fig5 as sample_sizes
from deepzero.reproduce.paper import published as paper
from deepzero.reproduce.paper import table1 as widths
from deepzero.reproduce.presentation import SPREAD, beside
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
)
from deepzero.training import TrainingConfig

FORWARD_GRADIENTS = {
    "LG-FG-A": EstimatorConfig(method="lg-fg-a"),
    "FG-W": EstimatorConfig(method="fg-w", options={"readout": "head"}),
}
"""As in the code of Ren et al., FG-W does not perturb the last layer, which gets its exact gradient."""

METHODS = ("DeepZero", "Pattern Search", "Align-ada", "LG-FG-A", "FG-W")


def config(scale: Scale, method: str, seed: int) -> ClassificationConfig:
    """Each method on the network that it is made for."""
    if method == "DeepZero":
        run = sparsities.config(scale, sparsities.DEEPZERO, 90, seed)
        return replace(run, data=replace(scale.grid.get("data of DeepZero", scale.images), limit=scale.images.limit))
    if method == "Align-ada":
        run = widths.config(scale, method, scale["width"], seed)
        return replace(run, training=replace(run.training, epochs=scale["epochs of alignment"]))
    if method == "Pattern Search":
        return _pattern_search(scale, seed)
    return ClassificationConfig(
        data=replace(scale.images, flip=True),
        model=scale["mixer"],
        estimator=FORWARD_GRADIENTS[method],
        training=TrainingConfig(
            epochs=scale["epochs of mixers"],
            learning_rate=scale["learning rate of mixers"],
            momentum=0.0,
            weight_decay=1e-4,
            warmup_epochs=0.0,
            schedule="linear",
        ),
        seed=seed,
    )


def _pattern_search(scale: Scale, seed: int) -> ClassificationConfig:
    """The fast variant on a normalized LeNet, one batch of all its samples, as its authors configure it."""
    images = scale["images of Pattern Search"]
    return ClassificationConfig(
        data=replace(scale.images, limit=images, batch_size=images),
        model=scale["lenet"],
        estimator=EstimatorConfig(method="pattern-search-fast", options={"queries": scale["queries"]}),
        training=replace(
            sample_sizes.SEARCH_TRAINING, epochs=scale["moves"], evaluate_every=max(1, scale["moves"] // 20)
        ),
        seed=seed,
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method."""
    for seed in range(scale.seeds):
        for method in METHODS:
            yield Cell(labels={"method": method, "seed": seed}, work=Training(config(scale, method, seed)))


def present(outcomes: Outcomes, _: Scale) -> Presentation:
    """Accuracy by number of parameters."""
    rows, series = [], []
    for method in outcomes.labelled("method"):
        runs = outcomes.where(method=method)
        parameters = int(runs[0].result["parameters"])
        published = paper.FIG1D[method]
        rows.append(
            [method, f"{parameters:,}", runs.percent(), runs.duration(), f"{published[0]:,}", f"{published[1]:.2f}"]
        )
        mean, deviation = 100 * (runs.mean("test_accuracy") or 0.0), 100 * runs.deviation("test_accuracy")
        series.append(Series(name=method, x=[parameters], y=[mean], spread=[deviation]))
    curves = {method: {parameters: accuracy} for method, (parameters, accuracy) in paper.FIG1D.items()}
    table = Table(
        title="Test accuracy by method",
        columns=[
            "method",
            "parameters",
            "test accuracy, %",
            "time of a run",
            "paper: parameters",
            "paper: accuracy, %",
        ],
        rows=rows or [[MISSING] * 6],
        note=f"{SPREAD} The paper's forward-gradient figures are of self-supervised training with a linear readout.",
    )
    figure = Figure(
        title="Test accuracy against the number of parameters",
        x_label="parameters",
        y_label="test accuracy, %",
        series=series,
        x_log=True,
    )
    return Presentation(tables=[table], figures=beside(figure, curves))


_DEEPZERO_SMALL, _DEEPZERO_PAPER = (sparsities.EXPERIMENT.scales[name] for name in ("small", "paper"))

EXPERIMENT = Experiment(
    name="fig1d",
    title="Fig. 1D: training without backpropagation",
    scales={
        "smoke": Scale(
            caption="Digits, 64 images, 1 epoch.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            grid={
                **sparsities.EXPERIMENT.scales["smoke"].grid,
                "width": 4,
                "epochs of alignment": 1,
                "learning rate": 5.0,
                "mixer": ModelConfig(
                    name="local_mixer", options={"blocks": 2, "patches": 2, "channels": 8, "groups": 2}
                ),
                "epochs of mixers": 1,
                "learning rate of mixers": 0.1,
                "lenet": ModelConfig(
                    name="lenet", options={"norm": 3.0, "init": "uniform", "kernel_size": 3, "padding": 1}
                ),
                "images of Pattern Search": 32,
                "queries": 16,
                "moves": 2,
            },
        ),
        "small": Scale(
            caption=(
                "CIFAR-10, 5,120 images averaged to 8x8 pixels: DeepZero at 90 % on a ResNet-8 of 8, 16 and 32 "
                "channels, 6 epochs; Align-ada on the 8-layer CNN of width 32, 20 epochs; forward gradients on a "
                "LocalMixer, 40 epochs, with flips; Pattern Search (fast) on a normalized LeNet, 500 images, 300 steps "
                "of up to 512 moves."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=5120),
            epochs=6,
            seeds=2,
            grid={
                **_DEEPZERO_SMALL.grid,
                "width": 32,
                "epochs of alignment": 20,
                "learning rate": 5.0,
                "mixer": ModelConfig(
                    name="local_mixer", options={"blocks": 4, "patches": 4, "channels": 128, "groups": 16}
                ),
                "epochs of mixers": 40,
                "learning rate of mixers": 0.1,
                "lenet": ModelConfig(
                    name="lenet", options={"norm": 3.0, "init": "uniform", "kernel_size": 3, "padding": 1}
                ),
                "images of Pattern Search": 500,
                "queries": 512,
                "moves": 300,
            },
        ),
        "paper": Scale(
            caption=(
                "CIFAR-10: DeepZero at 90 % on ResNet-20, as in Fig. 4; in batches of 100, Align-ada on the 8-layer "
                "CNN of width 512, 150 epochs, and forward gradients on LocalMixer L/8/64, supervised, 200 epochs, "
                "with flips; Pattern Search (fast) on a normalized LeNet, 500 images, 80,000 steps of up to 100 moves."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02),
            epochs=50,
            seeds=3,
            grid={
                **_DEEPZERO_PAPER.grid,
                "data of DeepZero": _DEEPZERO_PAPER.data,
                "width": 512,
                "epochs of alignment": 150,
                "learning rate": 5.0,
                "mixer": ModelConfig(
                    name="local_mixer", options={"blocks": 4, "patches": 8, "channels": 2048, "groups": 64}
                ),
                "epochs of mixers": 200,
                "learning rate of mixers": 0.1,
                "lenet": ModelConfig(name="lenet", options={"norm": 3.0, "init": "uniform"}),
                "images of Pattern Search": 500,
                "queries": None,
                "moves": 80_000,
            },
        ),
    },
    cells=cells,
    present=present,
)
