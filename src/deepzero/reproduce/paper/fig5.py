"""Fig. 5: DeepZero against Pattern Search, by number of training images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deepzero import models
from deepzero.measure.drawn_batches import image_shape
from deepzero.report import Figure, Series
from deepzero.reproduce.cells import Cell
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.paper import fig4
from deepzero.reproduce.presentation import (
    Outcomes,
    Presentation,
    accuracy_figures,
    accuracy_table,
    query_table,
    time_table,
)
from deepzero.sparsity import random_coordinates, smart_ratio
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig
from deepzero.training import TrainingConfig

SPARSITY = 0.9
IMAGES = "training images"
SEARCHES = {"Pattern Search": "pattern-search", "Pattern Search, fast": "pattern-search-fast"}

SEARCH_TRAINING = TrainingConfig(
    learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup_epochs=0.0, schedule="constant"
)
"""A step of SGD makes exactly the move that was found."""

NOTE = (
    "An epoch is a pass over the images in batches. For each batch Pattern Search polls within as many queries as "
    "DeepZero makes, by full forwards as its authors do: the first improvement is taken, or (fast) the best move of "
    "the poll. The paper's values are only in a plot."
)


@dataclass(frozen=True, kw_only=True)
class Fig5Scale(TrainingScale):
    """The scale of Fig. 5.

    Attributes:
        model: the network.
        images: numbers of training images.
        evaluate_every: epochs from one look at the validation images to the next.
    """

    model: ModelConfig
    images: tuple[int, ...]
    evaluate_every: int = 1


def queries_of_step(model: ModelConfig, data_name: str) -> int:
    """Perturbed losses of a step of DeepZero, which is what Pattern Search gets for each batch too."""
    channels, _ = image_shape(data_name)
    network = models.build(model.name, in_channels=channels, **model.options)
    return random_coordinates(network, smart_ratio(network, SPARSITY)).count


def config(scale: Fig5Scale, method: str, images: int, seed: int) -> ClassificationConfig:
    """A run of one method on a number of images."""
    data = replace(scale.data, limit=images)
    plain = TrainingConfig(learning_rate=0.1, warmup_epochs=1.0) if method == fig4.DEEPZERO else SEARCH_TRAINING
    training = replace(plain, epochs=scale.epochs, evaluate_every=scale.evaluate_every)
    if method == fig4.DEEPZERO:
        return fig4.deepzero(data=data, model=scale.model, training=training, every=5, seed=seed, sparsity=SPARSITY)
    options = {"queries": queries_of_step(scale.model, data.name), "evaluator": "sequential"}
    return ClassificationConfig(
        data=data,
        model=scale.model,
        estimator=EstimatorConfig(method=SEARCHES[method], options=options),
        training=training,
        seed=seed,
    )


def cells(scale: Fig5Scale) -> Iterator[Cell]:
    """Every method at every sample size."""
    for seed in range(scale.seeds):
        for images in scale.images:
            for method in (fig4.DEEPZERO, *SEARCHES):
                yield Cell.trained({IMAGES: images, "method": method}, config(scale, method, images, seed))


def present(outcomes: Outcomes, _: Fig5Scale) -> Presentation:
    """Accuracy, time and queries by number of images."""
    text = "{:,}".format
    time = Figure(
        title="Time against the number of training images",
        x_label=IMAGES,
        y_label="seconds of a run",
        series=[_times(runs, method) for method, runs in outcomes.by("method").items()],
        x_log=True,
        y_log=True,
    )
    title = "Test accuracy against the number of training images"
    return Presentation(
        tables=[
            accuracy_table(outcomes, IMAGES, text=text, note=NOTE),
            time_table(outcomes, IMAGES, text=text),
            query_table(outcomes, IMAGES, text=text),
        ],
        figures=[*accuracy_figures(outcomes, IMAGES, title=title, x_log=True), time],
    )


def _times(runs: Outcomes, method: str) -> Series:
    points = runs.by(IMAGES)
    return Series(name=method, x=list(points), y=[some.mean("seconds") or 0.0 for some in points.values()])


EXPERIMENT = Experiment(
    name="fig5",
    title="Fig. 5: DeepZero and Pattern Search, by number of training images",
    scales={
        "smoke": Fig5Scale(
            caption="Digits, a ResNet-8 of 4, 8 and 16 channels, 1 epoch.",
            data=DataConfig(name="digits", batch_size=16),
            model=ModelConfig(name="resnet8", options={"width": 4}),
            images=(16, 32),
        ),
        "small": Fig5Scale(
            caption=(
                "A ResNet-8 of 4, 8 and 16 channels (5,006 parameters), CIFAR-10 averaged to 8x8 pixels, 8 epochs, "
                "batches of 100, no augmentation."
            ),
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02, image_size=8),
            epochs=8,
            seeds=2,
            model=ModelConfig(name="resnet8", options={"width": 4}),
            images=(100, 500, 1000, 2000),
            evaluate_every=2,
        ),
        "paper": Fig5Scale(
            caption="ResNet-20 on CIFAR-10, 40 epochs, batches of 100, no augmentation (the paper states neither).",
            data=DataConfig(name="cifar10", batch_size=100, validation=0.02),
            epochs=40,
            seeds=3,
            model=ModelConfig(name="resnet20"),
            images=(100, 500, 1000, 2000, 4000, 8000, 16_000, 32_000),
        ),
    },
    cells=cells,
    present=present,
)
