"""Fig. 1D: test accuracy of training without backpropagation, by method and number of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import AtMostImages, Epochs, Experiment, TrainingScale
from deepzero.reproduce.paper import fig4, fig5, published, table1
from deepzero.reproduce.presentation import MISSING, SPREAD, Outcomes, Presentation, beside
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig
from deepzero.training import TrainingConfig

FORWARD_GRADIENTS = {
    "LG-FG-A": EstimatorConfig(method="lg-fg-a"),
    "FG-W": EstimatorConfig(method="fg-w", options={"readout": "head"}),
}
"""As in the code of Ren et al., FG-W does not perturb the last layer, which gets its exact gradient."""

METHODS = (fig4.DEEPZERO, "Pattern Search", "Align-ada", "LG-FG-A", "FG-W")


@dataclass(frozen=True, kw_only=True)
class Fig1dScale(TrainingScale):
    """The scale of Fig. 1D; ``epochs`` are DeepZero's.

    Attributes:
        deepzero: scale of Fig. 4 whose images, network and training DeepZero has here.
        width: of the network of Align-ada.
        alignment_epochs: passes of Align-ada over the training images.
        mixer: the network of the forward gradients.
        mixer_epochs: their passes over the training images.
        lenet: the network of Pattern Search.
        search_images: training images of Pattern Search.
        queries: most moves of Pattern Search that a step tries; None for the default.
        moves: steps of Pattern Search.
    """

    deepzero: fig4.Fig4Scale
    width: int
    alignment_epochs: Epochs = 1
    mixer: ModelConfig
    mixer_epochs: Epochs = 1
    lenet: ModelConfig
    search_images: AtMostImages
    queries: int | None
    moves: int


def config(scale: Fig1dScale, method: str, seed: int) -> ClassificationConfig:
    """Each method on the network that it is made for."""
    if method == fig4.DEEPZERO:
        data = replace(scale.deepzero.data, limit=scale.data.limit)
        return fig4.config(replace(scale.deepzero, data=data, epochs=scale.epochs), method, 90, seed)
    if method == "Align-ada":
        return table1.rule(scale.data, method, width=scale.width, epochs=scale.alignment_epochs, seed=seed)
    if method == "Pattern Search":
        return _pattern_search(scale, seed)
    return ClassificationConfig(
        data=replace(scale.data, flip=True),
        model=scale.mixer,
        estimator=FORWARD_GRADIENTS[method],
        training=TrainingConfig(
            epochs=scale.mixer_epochs,
            learning_rate=0.1,
            momentum=0.0,
            weight_decay=1e-4,
            warmup_epochs=0.0,
            schedule="linear",
        ),
        seed=seed,
    )


def _pattern_search(scale: Fig1dScale, seed: int) -> ClassificationConfig:
    """The fast variant on a normalized LeNet, one batch of all its samples, as its authors configure it."""
    return ClassificationConfig(
        data=replace(scale.data, limit=scale.search_images, batch_size=scale.search_images),
        model=scale.lenet,
        estimator=EstimatorConfig(method="pattern-search-fast", options={"queries": scale.queries}),
        training=replace(fig5.SEARCH_TRAINING, epochs=scale.moves, evaluate_every=max(1, scale.moves // 20)),
        seed=seed,
    )


def cells(scale: Fig1dScale) -> Iterator[Cell]:
    """Every method."""
    for seed in range(scale.seeds):
        for method in METHODS:
            yield Cell.trained({"method": method}, config(scale, method, seed))


def present(outcomes: Outcomes, _: Fig1dScale) -> Presentation:
    """Accuracy by number of parameters."""
    rows, series = [], []
    for method, runs in outcomes.by("method").items():
        parameters = int(runs[0].result["parameters"])
        size, accuracy = published.FIG1D[method]
        rows.append([method, f"{parameters:,}", runs.percent(), runs.duration(), f"{size:,}", f"{accuracy:.2f}"])
        mean, deviation = 100 * (runs.mean("test_accuracy") or 0.0), 100 * runs.deviation("test_accuracy")
        series.append(Series(name=method, x=[parameters], y=[mean], spread=[deviation]))
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
    curves = {method: {size: accuracy} for method, (size, accuracy) in published.FIG1D.items()}
    return Presentation(tables=[table], figures=beside(figure, curves))


def _mixer(*, blocks: int, patches: int, channels: int, groups: int) -> ModelConfig:
    options = {"blocks": blocks, "patches": patches, "channels": channels, "groups": groups}
    return ModelConfig(name="local_mixer", options=options)


def _lenet(**options: int) -> ModelConfig:
    return ModelConfig(name="lenet", options={"norm": 3.0, "init": "uniform", **options})


EXPERIMENT = Experiment(
    name="fig1d",
    title="Fig. 1D: training without backpropagation",
    scales={
        "smoke": Fig1dScale(
            caption="Digits, 64 images, 1 epoch.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            deepzero=fig4.EXPERIMENT.scale("smoke"),
            width=4,
            mixer=_mixer(blocks=2, patches=2, channels=8, groups=2),
            lenet=_lenet(kernel_size=3, padding=1),
            search_images=32,
            queries=16,
            moves=2,
        ),
        "small": Fig1dScale(
            caption=(
                "CIFAR-10, 5,120 images averaged to 8x8 pixels: DeepZero at 90 % on a ResNet-8 of 8, 16 and 32 "
                "channels, 6 epochs; Align-ada on the 8-layer CNN of width 32, 20 epochs; forward gradients on a "
                "LocalMixer, 40 epochs, with flips; Pattern Search (fast) on a normalized LeNet, 500 images, 300 steps "
                "of up to 512 moves."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=8, limit=5120),
            epochs=6,
            seeds=2,
            deepzero=fig4.EXPERIMENT.scale("small"),
            width=32,
            alignment_epochs=20,
            mixer=_mixer(blocks=4, patches=4, channels=128, groups=16),
            mixer_epochs=40,
            lenet=_lenet(kernel_size=3, padding=1),
            search_images=500,
            queries=512,
            moves=300,
        ),
        "paper": Fig1dScale(
            caption=(
                "CIFAR-10: DeepZero at 90 % on ResNet-20, as in Fig. 4; in batches of 100, Align-ada on the 8-layer "
                "CNN of width 512, 150 epochs, and forward gradients on LocalMixer L/8/64, supervised, 200 epochs, "
                "with flips; Pattern Search (fast) on a normalized LeNet, 500 images, 80,000 steps of up to 100 moves."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02),
            epochs=50,
            seeds=3,
            deepzero=fig4.EXPERIMENT.scale("paper"),
            width=512,
            alignment_epochs=150,
            mixer=_mixer(blocks=4, patches=8, channels=2048, groups=64),
            mixer_epochs=200,
            lenet=_lenet(),
            search_images=500,
            queries=None,
            moves=80_000,
        ),
    },
    cells=cells,
    present=present,
)
