"""The cells of an experiment: single training runs and measurements, each done once and kept."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from deepzero import data
from deepzero.doctor.forecast import forecast
from deepzero.estimator import Estimator
from deepzero.files import json_object, read_from
from deepzero.objective import parameters_of
from deepzero.stopwatch import Stopwatch, mean_seconds, median_seconds
from deepzero.tasks import classification
from deepzero.tasks.classification import ClassificationConfig
from deepzero.tasks.classification.classifier_setup import set_up
from deepzero.tasks.task_data import DataReader
from deepzero.training.metrics import read_metrics
from deepzero.training.run_folder import RATIOS_FILE
from deepzero.training.stop_request import StopRequest
from deepzero.validation import device

Labels = Mapping[str, str | int | float]

SUMMARY = ("test_accuracy", "test_loss", "seconds", "queries", "queries_for_ratios", "parameters", "steps")
CURVE = ("queries", "seconds", "training_loss", "validation_accuracy")

WINDOW = 2.0
"""Seconds of timing steps that are not estimates from function values."""


@dataclass
class Workplace:
    """Data, device and stop request that the cells of a reproduction share.

    Attributes:
        data_dir: folder of the data sets, see :func:`deepzero.data.load`.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        stop: asked between cells, and inside those that can be continued.
    """

    data_dir: Path | None = None
    device: str = "cpu"
    stop: StopRequest = field(default_factory=StopRequest)
    _reader: DataReader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._reader = DataReader(self.data_dir)

    def images(self, config: ClassificationConfig) -> data.Splits:
        """The images of a run, which are read once: the cells of an experiment share a few sets."""
        return self._reader.read(config.data)


class Work(Protocol):
    """The work of a cell: a training run or a measurement."""

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as JSON-able values."""
        ...

    def run(self, folder: Path, place: Workplace) -> dict[str, Any] | None:
        """The result as JSON-able values; None if it was stopped, and can be continued from ``folder``."""
        ...

    def forecast(self, place: Workplace) -> float | None:
        """Expected seconds; None if it is short."""
        ...


@dataclass(frozen=True)
class Training:
    """One training run, continued where it was stopped.

    Its result holds figures of the summary, the curve of the epochs, and the number of coordinates of each parameter in
    a step (None where every step ranks them again).
    """

    config: ClassificationConfig

    def settings(self) -> dict[str, Any]:
        """The configuration."""
        return {"training": asdict(self.config)}

    def run(self, folder: Path, place: Workplace) -> dict[str, Any] | None:
        """Test accuracy, time and queries; the curve of the epochs; coordinates of a step by parameter."""
        outcome = classification.train(
            self.config,
            out=folder,
            resume=(folder / "run.json").exists(),
            splits=place.images(self.config),
            device=place.device,
            max_seconds=place.stop.remaining,
        )
        if outcome.summary is None:
            return None
        with read_from(folder, advice="delete that folder to run the cell again"):
            return self._result(folder, outcome.summary, outcome.model)

    def _result(self, folder: Path, summary: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        epochs = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "epoch"]
        keep = json_object(folder / RATIOS_FILE)["keep"]
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        ranked_each_step = self.config.sparsity.pattern == "alternating"
        counts = {name: round(keep.get(name, 1.0) * size) for name, size in sizes.items()}
        return {
            **{name: summary[name] for name in SUMMARY},
            "curve": {name: [record.get(name) for record in epochs] for name in CURVE},
            "coordinates": None if ranked_each_step else counts,
        }

    def forecast(self, place: Workplace) -> float:
        """By timing a step, or from the cost table where a step is long."""
        return training_seconds(self.config, place.images(self.config), place.device)


def training_seconds(config: ClassificationConfig, splits: data.Splits, place: str = "cpu") -> float:
    """Seconds of the steps of a run, the choice of its coordinates included; validation is left out.

    An estimate from function values that takes long is added up from the measured cost of a query of every parameter;
    everything else is timed for some steps.

    Args:
        config: of the run.
        splits: its images.
        place: ``cpu``, ``cuda`` or ``cuda:1``.
    """
    watch = Stopwatch()
    setup = set_up(config, splits.train, device(place))
    choosing = watch.seconds()
    source, batch = setup.source, setup.batches.batch(0, 0)
    if isinstance(source, Estimator):
        step = _estimate_seconds(source, batch)
    else:
        trial = copy.copy(source)
        trial.backward(*batch)  # the first call allocates and compiles
        step = mean_seconds(lambda: trial.backward(*batch), seconds=WINDOW)
    return choosing + config.training.epochs * len(setup.batches) * step


def _estimate_seconds(zo: Estimator, batch: tuple[Tensor, Tensor]) -> float:
    perturbations = zo.directions(*batch)
    query = median_seconds(lambda: zo.objective.evaluate(parameters_of(zo.objective), batch, seed=0), repeats=1)
    return forecast(zo, batch, perturbations, query_seconds=query)[0].seconds_per_step


@dataclass(frozen=True)
class SingleMeasurement:
    """A measurement that is made in one go.

    Attributes:
        function: measures; called with ``options`` and the device.
        options: JSON-able keywords.
        seconds: expected; None if it is short.
    """

    function: Callable[..., dict[str, Any]]
    options: Mapping[str, Any]
    seconds: float | None = None

    def settings(self) -> dict[str, Any]:
        """The function's name and its options."""
        return {"measurement": self.function.__name__, "options": dict(self.options)}

    def run(self, folder: Path, place: Workplace) -> dict[str, Any]:
        """The result of the function."""
        return self.function(**self.options, device=place.device)

    def forecast(self, place: Workplace) -> float | None:
        """As stated."""
        return self.seconds


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table.

    Attributes:
        labels: tell it from the other cells of its experiment; ``seed`` is one of them where there are several.
        work: a training run or a measurement.
    """

    labels: Labels
    work: Work

    @classmethod
    def trained(cls, labels: Labels, config: ClassificationConfig) -> Cell:
        """The cell of a training run: its seed is one more label.

        >>> from deepzero.recipes.classification_recipes import RECIPES
        >>> Cell.trained({"method": "CGE"}, RECIPES.find("digits").config()).labels
        {'method': 'CGE', 'seed': 0}
        """
        return cls(labels={**labels, "seed": config.seed}, work=Training(config))

    @property
    def name(self) -> str:
        """The labels as the name of a file.

        >>> Cell(labels={"sparsity, %": 90, "method": "FO, dense", "seed": 1}, work=SingleMeasurement(dict, {})).name
        'sparsity=90-method=FO_dense-seed=1'
        """
        return "-".join(f"{_plain(key)}={_plain(str(value))}" for key, value in self.labels.items())


def _plain(text: str) -> str:
    return re.sub("[^A-Za-z0-9.+]+", "_", text).strip("_")
