"""Fig. 2: first-order training against coordinate-wise and random estimates, by number of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deepzero import data, models
from deepzero.estimator import CGE, RGE
from deepzero.evaluators import SequentialEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.drawn_batches import Batch, image_shape, noise_batch
from deepzero.report import Table
from deepzero.reproduce.cells import Cell, Labels, SingleMeasurement
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.paper import published
from deepzero.reproduce.presentation import (
    Outcomes,
    Presentation,
    accuracy_figures,
    accuracy_table,
    spread_text,
    time_table,
)
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig
from deepzero.training import TrainingConfig
from deepzero.training.gradient_sources import Autograd

LIMIT = "RGE, small-step limit"
METHODS = ("FO", "CGE", "RGE", LIMIT)
NOTE = (
    "RGE takes q = d directions a step. Where d forwards a step cannot be afforded, its small-step limit is drawn from "
    "the law of such estimates given the exact gradient."
)


@dataclass(frozen=True, kw_only=True)
class Fig2Scale(TrainingScale):
    """The scale of Fig. 2.

    Attributes:
        depths: of the network, by method.
        error_depths: depths at which the error of single estimates is measured.
        estimates: random estimates whose error is measured.
    """

    depths: Mapping[str, tuple[int, ...]]
    error_depths: tuple[int, ...] = (1,)
    estimates: int


def parameters(data_name: str, depth: int) -> int:
    """Number of parameters of the network at a depth."""
    channels, _ = image_shape(data_name)
    network = models.build("simple_cnn", in_channels=channels, depth=depth)
    return sum(p.numel() for p in network.parameters())


def config(scale: Fig2Scale, depth: int, method: str, seed: int) -> ClassificationConfig:
    """A run of the simple CNN."""
    d = parameters(scale.data.name, depth)
    estimator = {
        "FO": EstimatorConfig(method="fo"),
        "CGE": EstimatorConfig(method="cge", step_size=5e-3),
        "RGE": EstimatorConfig(method="rge", step_size=5e-3, queries=d),
        LIMIT: EstimatorConfig(method="rge-limit", options={"queries": d}),
    }[method]
    return ClassificationConfig(
        data=scale.data,
        model=ModelConfig(name="simple_cnn", options={"depth": depth}),
        estimator=estimator,
        training=TrainingConfig(epochs=scale.epochs, learning_rate=0.1, momentum=0.9, warmup_epochs=1.0),
        seed=seed,
    )


def cells(scale: Fig2Scale) -> Iterator[Cell]:
    """Every method at every depth, and the error of single estimates."""
    labels: Labels
    name, batch_size = scale.data.name, scale.data.batch_size
    for depth in scale.error_depths:
        options = {"depth": depth, "batch_size": batch_size, "data_name": name, "estimates": scale.estimates}
        labels = {"d": parameters(name, depth), "method": "errors"}
        yield Cell(labels=labels, work=SingleMeasurement(estimate_errors, options))
    for seed in range(scale.seeds):
        for method in METHODS:
            for depth in scale.depths[method]:
                labels = {"d": parameters(name, depth), "method": method}
                yield Cell.trained(labels, config(scale, depth, method, seed))


def estimate_errors(*, depth: int, batch_size: int, data_name: str, estimates: int, device: str) -> dict[str, Any]:
    """:math:`|\\hat g - g|^2 / |g|^2` of single CGE and RGE estimates at q = d, at initial weights, by full forwards.

    The batch is noise with random labels (digits: the first images); step size 5e-3.
    """
    channels, size = image_shape(data_name)
    model = models.build("simple_cnn", in_channels=channels, image_size=size, depth=depth).to(device).train()
    x, y = _batch(data_name, batch_size, device)
    exact = _gradient(model, Autograd(model, loss=LOSSES["cross-entropy"]), x, y)
    d = len(exact)
    shared: Mapping[str, Any] = {"loss": LOSSES["cross-entropy"], "step_size": 5e-3, "evaluator": SequentialEvaluator()}
    random = [
        _relative_error(_gradient(model, RGE(model, queries=d, seed=seed, **shared), x, y), exact)
        for seed in range(estimates)
    ]
    coordinate = _relative_error(_gradient(model, CGE(model, **shared), x, y), exact)
    return {"RGE": random, "CGE": coordinate, "theory": (d + 1) / d, "d": d}


def _batch(name: str, size: int, device: str) -> Batch:
    if name == "digits":
        loader = data.BatchLoader(data.load("digits").train, batch_size=size, device=device)
        return loader.batch(0, 0)
    return noise_batch(size, seed=0, device=device)


def _gradient(model: torch.nn.Module, source: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    source.backward(x, y)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).double()


def _relative_error(estimate: torch.Tensor, exact: torch.Tensor) -> float:
    return float((estimate - exact).square().sum() / exact.square().sum())


def present(outcomes: Outcomes, _: Fig2Scale) -> Presentation:
    """Accuracy and time by number of parameters, and the errors of single estimates."""
    runs = Outcomes(o for o in outcomes if "seed" in o.labels)
    estimated = Outcomes(o for o in runs if o.labels["method"] != LIMIT)
    tables = [accuracy_table(runs, "d", published=published.FIG2, note=NOTE), time_table(estimated, "d")]
    if len(errors := outcomes.where(method="errors")):
        tables.append(_errors(errors))
    title = "Test accuracy against the number of parameters"
    figures = accuracy_figures(runs, "d", title=title, x_label="parameters d", published=published.FIG2)
    return Presentation(tables=tables, figures=figures)


def _errors(errors: Outcomes) -> Table:
    rows = [
        [
            f"{run.labels['d']:,}",
            spread_text(run.result["RGE"]),
            f"{run.result['theory']:.3f}",
            f"{run.result['CGE']:.2e}",
        ]
        for run in errors
    ]
    return Table(
        title="Squared error of a single estimate over the squared gradient",
        columns=["d", "RGE, measured", "RGE, theory (d + 1)/q", "CGE, measured"],
        rows=rows,
        note="By full forwards at initial weights, step size 5e-3, q = d. Mean ± standard deviation (estimates).",
    )


def _everywhere(*depths: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(METHODS, depths)


EXPERIMENT = Experiment(
    name="fig2",
    title="Fig. 2: first-order training, CGE and RGE on the simple CNN",
    scales={
        "smoke": Fig2Scale(
            caption="Digits, 64 images of 8x8 pixels, 1 epoch.",
            data=DataConfig(name="digits", batch_size=32, limit=64),
            depths=_everywhere(1),
            estimates=2,
        ),
        "small": Fig2Scale(
            caption=(
                "CIFAR-10, 5,120 images averaged to 16x16 pixels, 8 epochs, batches of 128, no augmentation. RGE's "
                "training runs are those of its small-step limit."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, image_size=16, limit=5120),
            epochs=8,
            seeds=3,
            depths=_everywhere(1, 2, 3, 4) | {"CGE": (1, 2), "RGE": ()},
            estimates=3,
        ),
        "paper": Fig2Scale(
            caption="CIFAR-10, 50 epochs, batches of 128, no augmentation (the paper states neither).",
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02),
            epochs=50,
            seeds=3,
            depths=_everywhere(1, 2, 3, 4, 5),
            error_depths=(1, 2),
            estimates=5,
        ),
    },
    cells=cells,
    present=present,
)
