"""Experiments whose cells take no time, and results that nobody measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepzero import models
from deepzero.report import Figure, Series, Table
from deepzero.reproduce import (
    EXPERIMENTS,
    Cell,
    Experiment,
    Outcome,
    Outcomes,
    Presentation,
    SingleMeasurement,
    Training,
    TrainingScale,
)
from deepzero.reproduce.cells import Workplace
from deepzero.reproduce.paper.fig6 import Correction
from deepzero.reproduce.paper.schedule_study import cost_table
from deepzero.reproduce.paper.table2 import Defense
from deepzero.reproduce.paper.table_a1 import STAGES
from deepzero.tasks.classification import ClassificationConfig, DataConfig

SIZES = {"digits": (1, 8), "cifar10": (3, 32)}


@dataclass
class Log:
    """Calls of the works of an experiment, and orders to them."""

    run: list[str] = field(default_factory=list)
    forecast: list[str] = field(default_factory=list)
    pause: set[str] = field(default_factory=set)
    """Works that stop in the middle, once."""
    after: Callable[[str, Workplace], None] = lambda name, place: None
    """Called at the end of each run."""
    version: int = 1
    """Part of the settings."""


@dataclass(frozen=True)
class Noted:
    """Writes down that it was run."""

    name: str
    log: Log
    seconds: float | None = None

    def settings(self) -> dict[str, Any]:
        return {"noted": self.name, "version": self.log.version}

    def run(self, folder: Path, place: Workplace) -> dict[str, Any] | None:
        self.log.run.append(self.name)
        if self.name in self.log.pause:
            self.log.pause.remove(self.name)
            return None
        self.log.after(self.name, place)
        return {"test_accuracy": len(self.name) / 10, "folder": folder.name}

    def forecast(self, place: Workplace) -> float | None:
        self.log.forecast.append(self.name)
        return self.seconds


def noted_experiment(log: Log, kinds: Mapping[str, float | None], *, plotted: bool = False) -> Experiment[Any]:
    """Cells of some kinds (and the seconds that each is forecast to take), two seeds of each; plots take time."""

    def cells(scale: TrainingScale) -> list[Cell]:
        return [
            Cell(labels={"kind": kind, "seed": seed}, work=Noted(f"{kind}{seed}", log, seconds))
            for seed in range(scale.seeds)
            for kind, seconds in kinds.items()
        ]

    def present(outcomes: Outcomes, _: TrainingScale) -> Presentation:
        rows = [[str(o.labels["kind"]), str(o.labels["seed"]), f"{o.result['test_accuracy']:.1f}"] for o in outcomes]
        curve = Series(name="all", x=list(range(len(outcomes))), y=outcomes.values("test_accuracy"))
        return Presentation(
            tables=[Table(title="All", columns=["kind", "seed", "accuracy"], rows=rows)],
            figures=[Figure(title="All", x_label="number", y_label="accuracy", series=[curve])] if plotted else (),
        )

    scale = TrainingScale(caption="Made up.", data=DataConfig(name="digits"), seeds=2)
    return Experiment(
        name="noted",
        title="Noted cells",
        scales=dict.fromkeys(("smoke", "small", "paper"), scale),
        cells=cells,
        present=present,
    )


def cells_of(name: str, scale_name: str) -> list[Cell]:
    """The cells of a true experiment."""
    experiment = EXPERIMENTS[name]
    return list(experiment.cells(experiment.scale(scale_name)))


def shown(
    name: str, scale_name: str = "small", keep: Callable[[int], bool] = lambda number: True
) -> tuple[Presentation, Outcomes]:
    """The presentation of made-up outcomes of some cells, and the outcomes."""
    experiment = EXPERIMENTS[name]
    outcomes = Outcomes(made_up(c, n) for n, c in enumerate(cells_of(name, scale_name)) if keep(n))
    return experiment.present(outcomes, experiment.scale(scale_name)), outcomes


def network(config: ClassificationConfig) -> Any:
    """The network of a run, whose data set need not be there."""
    channels, size = SIZES[config.data.name]
    return models.build(
        config.model.name,
        in_channels=channels,
        image_size=config.data.image_size or size,
        num_classes=10,
        seed=config.seed,
        **config.model.options,
    )


def made_up(cell: Cell, number: int) -> Outcome:
    """A plausible outcome of a cell, in the form of the true ones."""
    work = cell.work
    if isinstance(work, Training):
        return Outcome(cell.labels, training_result(work.config, number))
    if isinstance(work, Defense):
        return Outcome(cell.labels, defense_result(work, number))
    if isinstance(work, Correction):
        return Outcome(cell.labels, correction_result(work, number))
    assert isinstance(work, SingleMeasurement)
    return Outcome(cell.labels, measured(work, number))


def training_result(config: ClassificationConfig, number: int) -> dict[str, Any]:
    accuracy = 0.3 + 0.001 * number
    epochs = range(1, config.training.epochs + 1)
    looks = [epoch % config.training.evaluate_every == 0 or epoch == config.training.epochs for epoch in epochs]
    return {
        "test_accuracy": accuracy,
        "test_loss": 1.5,
        "seconds": 60.0 + number,
        "queries": 1000,
        "queries_for_ratios": 0,
        "parameters": 5000 + number,
        "steps": 10 * config.training.epochs,
        "curve": {
            "queries": [100 * epoch for epoch in epochs],
            "seconds": [1.0 * epoch for epoch in epochs],
            "training_loss": [2.0 / epoch for epoch in epochs],
            "validation_accuracy": [
                accuracy * epoch / len(looks) if look else None for epoch, look in zip(epochs, looks, strict=True)
            ],
        },
        "coordinates": {"a": 3, "b": 4},
    }


def measured(work: SingleMeasurement, number: int) -> dict[str, Any]:
    """By the name of the function that would have measured."""
    return MEASURED[work.function.__name__](work.options, number)


def _spread(value: float) -> dict[str, Any]:
    return {"median": value, "min": value / 2, "max": 2 * value, "rounds": [value]}


def _compare(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {
        "d": 730 + 2970 * (options["depth"] - 1),
        "seconds": {"naive": _spread(8.0 + number), "block_reuse": _spread(4.0), "deepzero": _spread(0.5)},
        "speed_up": {"naive": _spread(1.0), "block_reuse": _spread(2.0), "deepzero": _spread(16.0 + number)},
        "deviation": {"block_reuse": 1e-7, "deepzero": 2e-7},
        "tolerance": 1e-4,
    }


def _estimate_errors(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"RGE": [1.0, 1.2], "CGE": 2.5e-4, "theory": 731 / 730, "d": 730}


def _stages(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    d = 730 + 2970 * (options["depth"] - 1)
    return {"d": d, "timed_queries": 20, **{name: 0.25 * (k + 1) for k, name in enumerate(STAGES)}}


def _propagation(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"d": 730 + 2970 * (options["depth"] - 1), "seconds": [0.5, 0.7]}


def _workers(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    simulated = {str(n): 8.0 / n for n in (1, 2, 4, 8)}
    return {"queries": 501, "measured": {"1": [8.0, 9.0, 7.0], "2": [4.0, 5.0, 4.5]}, "simulated": simulated}


def _cost_table(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"base": 0.5, "seconds_per_query": {"a": 0.1, "b": 0.05}}


MEASURED: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "compare": _compare,
    "estimate_errors": _estimate_errors,
    "stages": _stages,
    "propagation": _propagation,
    "measured": _workers,
    cost_table.__name__: _cost_table,
}


def correction_result(work: Correction, number: int) -> dict[str, Any]:
    """Errors and the curve of a training; the solver alone has none."""
    mae = 0.1 / (1 + number)
    points = [] if work.config.method == "src" else [0.5, 1.0]
    return {
        "mae": mae,
        "source_mae": 0.15,
        "maes": [mae] * len(work.config.flow.test),
        "by_step": [mae] * max(1, work.config.flow.frames // 10),
        "solver_calls": 1000 + number,
        "skipped": 0,
        "seconds": 1.0 + number,
        "curve": [{"mae": mae / part, "solver_calls": part * 1000, "training_loss": 1.0} for part in points],
    }


def defense_result(work: Defense, number: int) -> dict[str, Any]:
    radii = work.certification.radii_for(work.config.sigma)
    accuracies = [0.9 - 0.2 * k - 0.001 * number for k in range(len(radii))]
    return {
        "radii": list(radii),
        "certified_accuracy": accuracies,
        "average_certified_radius": 0.4 - 0.001 * number,
        "curve": [[0.1, 0.8], [0.5, 0.3]],
        "queries": work.config.budget,
        "seconds": 10.0 + number,
        "classifier_sha256": "0" * 64,
        "loss": [[100, 2.0], [200, 1.5]],
    }
