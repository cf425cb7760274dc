"""Coordinate schedules at equal time per step: the paper's against others (a study of ours)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepzero import models
from deepzero.estimator import CGE
from deepzero.evaluators import PropagationEvaluator
from deepzero.losses import LOSSES
from deepzero.measure.drawn_batches import image_shape, noise_batch
from deepzero.objective import NetworkObjective
from deepzero.randomness import derive_seed
from deepzero.report import Figure, Series, Table
from deepzero.reproduce.cells import Cell, SingleMeasurement
from deepzero.reproduce.experiment import Experiment, TrainingScale
from deepzero.reproduce.presentation import MISSING, Outcome, Outcomes, Presentation, trajectory
from deepzero.tasks.classification import ClassificationConfig, DataConfig, EstimatorConfig, ModelConfig, SparsityConfig
from deepzero.text import duration
from deepzero.training import TrainingConfig


def _smart_ratio(**schedule: Any) -> SparsityConfig:
    return SparsityConfig(sparsity=0.9, ratios="smart-ratio", **schedule)


def _cost_aware(exponent: float, **weights: Any) -> SparsityConfig:
    return SparsityConfig(sparsity=0.9, ratios="cost-aware", exponent=exponent, **weights)


RULES: dict[str, SparsityConfig] = {
    "Smart-Ratio, every 5 epochs": _smart_ratio(every=5, unit="epoch"),
    "Smart-Ratio, every epoch": _smart_ratio(every=1, unit="epoch"),
    "Smart-Ratio, every step": _smart_ratio(),
    "cost^(-1/2)": _cost_aware(0.5),
    "cost^(-1/5)": _cost_aware(0.2),
    "sensitivity cost^(-1/2)": _cost_aware(0.5, weights="sensitivity"),
    "sensitivity cost^(-1/5)": _cost_aware(0.2, weights="sensitivity"),
    "Smart-Ratio cost^(-1/2)": _cost_aware(0.5, weights="smart-ratio"),
    "dense": SparsityConfig(),
}
"""Rules of choosing coordinates; they are drawn at every step where the name does not say otherwise."""

AUTOGRAD, QUERIES = "masked autograd", "CGE"
SOURCES = {AUTOGRAD: "fo", QUERIES: "cge"}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of the study.

    Attributes:
        model: its configuration.
        image_size: side of its images in pixels; None for the data set's own.
    """

    model: ModelConfig
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleScale(TrainingScale):
    """The scale of the study.

    Attributes:
        networks: by name.
        rules: names of :data:`RULES`, whose runs take the exact gradient on the chosen coordinates.
        query_rules: names of those that are run by function values, too.
        query_networks: networks that are trained by function values.
        query_seeds: runs of each kind by function values; None for as many as by autograd.
    """

    networks: Mapping[str, Network]
    rules: tuple[str, ...] = tuple(RULES)
    query_rules: tuple[str, ...]
    query_networks: tuple[str, ...]
    query_seeds: int | None = None


def config(scale: ScheduleScale, network: Network, rule: str, source: str, seed: int) -> ClassificationConfig:
    """A run of one rule."""
    return ClassificationConfig(
        data=replace(scale.data, image_size=network.image_size),
        model=network.model,
        estimator=EstimatorConfig(method=SOURCES[source]),
        sparsity=RULES[rule],
        training=TrainingConfig(epochs=scale.epochs, learning_rate=0.1, warmup_epochs=1.0),
        seed=seed,
    )


def cells(scale: ScheduleScale) -> Iterator[Cell]:
    """The cost table of every network, then every rule by masked autograd, then some by function values."""
    for name, network in scale.networks.items():
        options = {
            "model": network.model.name,
            "options": dict(network.model.options),
            "data": scale.data.name,
            "image_size": network.image_size,
            "batch_size": scale.data.batch_size,
        }
        yield Cell(labels={"network": name, "gradient": "costs"}, work=SingleMeasurement(cost_table, options))
    yield from _runs(scale, AUTOGRAD, scale.seeds, scale.rules, tuple(scale.networks))
    yield from _runs(scale, QUERIES, scale.query_seeds or scale.seeds, scale.query_rules, scale.query_networks)


def _runs(
    scale: ScheduleScale, source: str, seeds: int, rules: tuple[str, ...], networks: tuple[str, ...]
) -> Iterator[Cell]:
    for seed, rule, name in itertools.product(range(seeds), rules, networks):
        run = config(scale, scale.networks[name], rule, source, seed)
        yield Cell.trained({"network": name, "rule": rule, "gradient": source}, run)


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


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step by the cost table of a network: of the base forward, and of a query by parameter."""

    base: float
    seconds_per_query: Mapping[str, float]

    @classmethod
    def measured(cls, outcomes: Outcomes, network: str) -> StepCosts | None:
        """The cost table of a network; None if it is not finished."""
        tables = outcomes.where(network=network, gradient="costs")
        return cls(**tables[0].result) if len(tables) else None

    def seconds(self, run: Outcome) -> float:
        """Seconds of a step of a run."""
        counts = run.result["coordinates"].items()
        return float(self.base + sum(count * self.seconds_per_query[name] for name, count in counts))


def queries_of_step(run: Outcome) -> int:
    """Losses that a step of a run evaluates, or would evaluate if its gradients came from function values."""
    return 1 + int(sum(run.result["coordinates"].values()))


def present(outcomes: Outcomes, scale: ScheduleScale) -> Presentation:
    """Accuracy by rule and network, and against predicted seconds and queries."""
    costs = {network: StepCosts.measured(outcomes, network) for network in scale.networks}
    by_source = {source: outcomes.where(gradient=source) for source in SOURCES}
    figures = [
        _figure(runs, f"{network}, {source}", label, per_step)
        for network in scale.networks
        for source in SOURCES
        if len(runs := by_source[source].where(network=network))
        for label, per_step in _abscissae(costs[network]).items()
    ]
    return Presentation(
        tables=[_table(runs, costs, source) for source, runs in by_source.items() if len(runs)], figures=figures
    )


def _table(runs: Outcomes, costs: Mapping[str, StepCosts | None], source: str) -> Table:
    networks = runs.labelled("network")
    rows = []
    for rule, some in runs.by("rule").items():
        row = [rule]
        for network in networks:
            of, cost = some.where(network=network), costs[network]
            queries = f"{queries_of_step(of[0]):,}" if len(of) else MISSING
            row += [of.percent(), queries, duration(cost.seconds(of[0])) if len(of) and cost else MISSING]
        rows.append(row)
    heads = [head for network in networks for head in (f"{network}: test accuracy, %", "queries a step", "time a step")]
    note = (
        "Mean ± standard deviation (runs). Time a step: of coordinate-wise estimates on one thread, from the measured "
        "cost of a query of each parameter."
    )
    if source == AUTOGRAD:
        note += " These runs take the exact gradient on the chosen coordinates, which estimates at a small step equal."
    return Table(title=f"Test accuracy, {source}", columns=["rule", *heads], rows=rows, note=note)


def _abscissae(cost: StepCosts | None) -> dict[str, Callable[[Outcome], float]]:
    """The expense of a step, by name."""
    queries: dict[str, Callable[[Outcome], float]] = {"queries": queries_of_step}
    return queries if cost is None else {**queries, "seconds on one thread, predicted": cost.seconds}


def _figure(runs: Outcomes, title: str, label: str, per_step: Callable[[Outcome], float]) -> Figure:
    """Validation accuracy against the expense of the steps so far."""
    series = []
    for rule, of in runs.by("rule").items():
        curve = trajectory(of, rule)
        epoch = per_step(of[0]) * of[0].result["steps"] / len(of[0].result["curve"]["validation_accuracy"])
        series.append(Series(name=rule, x=[epoch * done for done in curve.x], y=curve.y))
    return Figure(title=title, x_label=label, y_label="validation accuracy, %", series=series, x_log=True)


def _cnn(depth: int) -> Network:
    return Network(model=ModelConfig(name="simple_cnn", options={"depth": depth}))


def _networks(resnet_images: int) -> dict[str, Network]:
    resnet = Network(model=ModelConfig(name="resnet20"), image_size=resnet_images)
    return {"CNN, depth 3": _cnn(3), "CNN, depth 5": _cnn(5), "ResNet-20": resnet}


EXPERIMENT = Experiment(
    name="schedules",
    title="Coordinate schedules at equal time per step",
    scales={
        "smoke": ScheduleScale(
            caption="Digits, 128 images, 2 epochs, the CNN of depth 2, a few of the rules.",
            data=DataConfig(name="digits", batch_size=32, limit=128),
            epochs=2,
            networks={"CNN, depth 2": _cnn(2)},
            rules=("Smart-Ratio, every 5 epochs", "sensitivity cost^(-1/2)", "Smart-Ratio cost^(-1/2)", "dense"),
            query_rules=("cost^(-1/2)",),
            query_networks=("CNN, depth 2",),
        ),
        "small": ScheduleScale(
            caption=(
                "CIFAR-10, 4,096 images, 8 epochs, batches of 128; ResNet-20 on images averaged to 8x8 pixels; by "
                "function values one seed."
            ),
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, limit=4096),
            epochs=8,
            seeds=3,
            networks=_networks(8),
            query_rules=("Smart-Ratio, every step", "cost^(-1/2)"),
            query_networks=("CNN, depth 3",),
            query_seeds=1,
        ),
        "paper": ScheduleScale(
            caption="CIFAR-10, 10,000 images, 15 epochs, batches of 128; ResNet-20 on images averaged to 16x16 pixels.",
            data=DataConfig(name="cifar10", batch_size=128, validation=0.02, limit=10_000),
            epochs=15,
            seeds=3,
            networks=_networks(16),
            query_rules=("Smart-Ratio, every 5 epochs", "Smart-Ratio, every step", "cost^(-1/2)"),
            query_networks=("CNN, depth 3",),
        ),
    },
    cells=cells,
    present=present,
)
