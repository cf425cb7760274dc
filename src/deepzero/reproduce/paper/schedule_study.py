"""Coordinate schedules at equal time per step: the paper's against others (a study of ours)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from deepzero import models
from deepzero.estimator import CGE
from deepzero.evaluators import PropagationEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.image_batches import image_shape, noise_batch
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, Labels, Measurement, Training
from deepzero.reproduce.experiment import MISSING, Experiment, Outcomes, Presentation, Scale
from deepzero.reproduce.presentation import trajectory
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    SparsityConfig,
)
from deepzero.text import duration
from deepzero.training import TrainingConfig

SPARSITY = 0.9

RULES: dict[str, SparsityConfig] = {
    "Smart-Ratio, every 5 epochs": SparsityConfig(sparsity=SPARSITY, ratios="smart-ratio", every=5, unit="epoch"),
    "Smart-Ratio, every epoch": SparsityConfig(sparsity=SPARSITY, ratios="smart-ratio", every=1, unit="epoch"),
    "Smart-Ratio, every step": SparsityConfig(sparsity=SPARSITY, ratios="smart-ratio"),
    "cost^(-1/2)": SparsityConfig(sparsity=SPARSITY, ratios="cost-aware", exponent=0.5),
    "cost^(-1/5)": SparsityConfig(sparsity=SPARSITY, ratios="cost-aware", exponent=0.2),
    "sensitivity cost^(-1/2)": SparsityConfig(
        sparsity=SPARSITY, ratios="cost-aware", exponent=0.5, weights="sensitivity"
    ),
    "sensitivity cost^(-1/5)": SparsityConfig(
        sparsity=SPARSITY, ratios="cost-aware", exponent=0.2, weights="sensitivity"
    ),
    "Smart-Ratio cost^(-1/2)": SparsityConfig(
        sparsity=SPARSITY, ratios="cost-aware", exponent=0.5, weights="smart-ratio"
    ),
    "dense": SparsityConfig(),
}
"""Rules of choosing coordinates; where nothing is said of it, they are drawn anew at every step."""

SOURCES = {"masked autograd": "fo", "CGE": "cge"}


def config(scale: Scale, network: str, rule: str, source: str, seed: int) -> ClassificationConfig:
    """A run of one rule; a network stands with the size of its images, None for their own."""
    model, size = scale["networks"][network]
    return ClassificationConfig(
        data=replace(scale.images, image_size=size),
        model=model,
        estimator=EstimatorConfig(method=SOURCES[source]),
        sparsity=RULES[rule],
        training=TrainingConfig(epochs=scale.epochs, learning_rate=0.1, warmup_epochs=1.0),
        seed=seed,
    )


def cells(scale: Scale) -> Iterator[Cell]:
    """The cost table of every network, then every rule by masked autograd, then some by function values."""
    for network, (model, size) in scale["networks"].items():
        options = {
            "model": model.name,
            "options": dict(model.options),
            "data": scale.images.name,
            "image_size": size,
            "batch_size": scale.images.batch_size,
        }
        yield Cell(labels={"network": network, "gradient": "costs"}, work=Measurement(cost_table, options))
    for source, rules in scale["rules"].items():
        by_queries = source != "masked autograd"
        networks = scale["by_queries"] if by_queries else scale["networks"]
        seeds = scale.grid.get("seeds by queries", scale.seeds) if by_queries else scale.seeds
        for seed, rule, network in itertools.product(range(seeds), rules, networks):
            labels: Labels = {"network": network, "rule": rule, "gradient": source, "seed": seed}
            yield Cell(labels=labels, work=Training(config(scale, network, rule, source, seed)))


def cost_table(
    *, model: str, options: Mapping[str, Any], data: str, image_size: int | None, batch_size: int, device: str
) -> dict[str, Any]:
    """Seconds of a query by parameter, by difference propagation on noise, with one thread."""
    channels, side = image_shape(data)
    size = image_size or side
    network = models.build(model, in_channels=channels, image_size=size, **options).to(device)
    zo = CGE(network, loss=LOSSES["cross-entropy"], evaluator=PropagationEvaluator(workers=1))
    assert isinstance(zo.objective, NetworkObjective)
    assert isinstance(zo.evaluator, PropagationEvaluator)
    batch = noise_batch(batch_size, channels, size, seed=derive_seed(0, "noise"), device=device)
    table = zo.evaluator.costs(zo.objective, *batch, repeats=3)
    return {"base": table.base, "seconds_per_query": table.seconds_per_query()}


def present(outcomes: Outcomes, scale: Scale) -> Presentation:
    """Accuracy by rule and network, and against predicted seconds and queries."""
    tables, figures = [], []
    for source in SOURCES:
        runs = outcomes.where(gradient=source)
        if len(runs):
            tables.append(_table(runs, outcomes, source))
    for network in scale["networks"]:
        for source in SOURCES:
            runs = outcomes.where(network=network, gradient=source)
            if len(runs):
                figures += _figures(runs, _step_seconds(outcomes, network), f"{network}, {source}")
    return Presentation(tables=tables, figures=figures)


def _table(runs: Outcomes, outcomes: Outcomes, source: str) -> Table:
    networks = runs.labelled("network")
    rows = []
    for rule in runs.labelled("rule"):
        row = [rule]
        for network in networks:
            of = runs.where(rule=rule, network=network)
            seconds = _step_seconds(outcomes, network)
            row += [of.percent(), _count(of), duration(seconds(of[0])) if len(of) and seconds else MISSING]
        rows.append(row)
    heads = [head for network in networks for head in (f"{network}: test accuracy, %", "queries a step", "time a step")]
    note = (
        "Mean ± standard deviation (runs). Time a step: of coordinate-wise estimates on one thread, from the measured "
        "cost of a query of each parameter."
    )
    if source != "CGE":
        note += " These runs take the exact gradient on the chosen coordinates, which estimates at a small step equal."
    return Table(title=f"Test accuracy, {source}", columns=["rule", *heads], rows=rows, note=note)


def _count(runs: Outcomes) -> str:
    return f"{_coordinates(runs[0]):,}" if len(runs) else MISSING


def _coordinates(run: Any) -> int:
    return 1 + int(sum(run.result["coordinates"].values()))


def _step_seconds(outcomes: Outcomes, network: str) -> Any:
    """What a step of a run takes by the cost table, as a function of the run; None if there is no table."""
    tables = outcomes.where(network=network, gradient="costs")
    if not len(tables):
        return None
    table = tables[0].result

    def seconds(run: Any) -> float:
        each = table["seconds_per_query"]
        return float(table["base"] + sum(count * each[name] for name, count in run.result["coordinates"].items()))

    return seconds


def _figures(runs: Outcomes, seconds: Any, title: str) -> list[Figure]:
    """Validation accuracy against what the steps so far would take."""
    axes = {"queries": _coordinates}
    if seconds is not None:
        axes["seconds on one thread, predicted"] = seconds
    figures = []
    for label, per_step in axes.items():
        series = []
        for rule in runs.labelled("rule"):
            of = runs.where(rule=rule)
            curve = trajectory(of, rule)
            epoch = per_step(of[0]) * of[0].result["steps"] / len(of[0].result["curve"]["validation_accuracy"])
            series.append(Series(name=rule, x=[epoch * done for done in curve.x], y=curve.y))
        figures.append(Figure(title=title, x_label=label, y_label="validation accuracy, %", series=series, x_log=True))
    return figures


EVERY = {"masked autograd": tuple(RULES)}

EXPERIMENT = Experiment(
    name="schedules",
    title="Coordinate schedules at equal time per step",
    scales={
        "smoke": Scale(
            caption="Digits, 128 images, 2 epochs, the CNN of depth 2, a few of the rules.",
            data=DataConfig(name="digits", batch_size=32, limit=128),
            epochs=2,
            grid={
                "networks": {"CNN, depth 2": (ModelConfig(name="simple_cnn", options={"depth": 2}), None)},
                "rules": {
                    "masked autograd": (
                        "Smart-Ratio, every 5 epochs",
                        "sensitivity cost^(-1/2)",
                        "Smart-Ratio cost^(-1/2)",
                        "dense",
                    ),
                    "CGE": ("cost^(-1/2)",),
                },
                "by_queries": ("CNN, depth 2",),
            },
        ),
        "small": Scale(
            caption=(
                "CIFAR-10, 4,096 images, 8 epochs, batches of 128; ResNet-20 on images averaged to 8x8 pixels; by "
                "function values one seed."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, limit=4096),
            epochs=8,
            seeds=3,
            grid={
                "networks": {
                    "CNN, depth 3": (ModelConfig(name="simple_cnn", options={"depth": 3}), None),
                    "CNN, depth 5": (ModelConfig(name="simple_cnn", options={"depth": 5}), None),
                    "ResNet-20": (ModelConfig(name="resnet20"), 8),
                },
                "rules": {**EVERY, "CGE": ("Smart-Ratio, every step", "cost^(-1/2)")},
                "by_queries": ("CNN, depth 3",),
                "seeds by queries": 1,
            },
        ),
        "paper": Scale(
            caption="CIFAR-10, 10,000 images, 15 epochs, batches of 128; ResNet-20 on images averaged to 16x16 pixels.",
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, limit=10_000),
            epochs=15,
            seeds=3,
            grid={
                "networks": {
                    "CNN, depth 3": (ModelConfig(name="simple_cnn", options={"depth": 3}), None),
                    "CNN, depth 5": (ModelConfig(name="simple_cnn", options={"depth": 5}), None),
                    "ResNet-20": (ModelConfig(name="resnet20"), 16),
                },
                "rules": {
                    **EVERY,
                    "CGE": ("Smart-Ratio, every 5 epochs", "Smart-Ratio, every step", "cost^(-1/2)"),
                },
                "by_queries": ("CNN, depth 3",),
            },
        ),
    },
    cells=cells,
    present=present,
)
