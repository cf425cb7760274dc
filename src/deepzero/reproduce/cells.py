"""The cells of an experiment: single runs and measurements, each done once and kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from deepzero import data
from deepzero.reproduce.training_time import training_seconds
from deepzero.tasks import classification
from deepzero.tasks.classification import RATIOS, ClassificationConfig
from deepzero.tasks.task_data import DataReader
from deepzero.training.metrics import read_metrics
from deepzero.training.stop_request import StopRequest

Labels = Mapping[str, str | int | float]

SUMMARY = ("test_accuracy", "test_loss", "seconds", "queries", "queries_for_ratios", "parameters", "steps")
CURVE = ("queries", "seconds", "training_loss", "validation_accuracy")


@dataclass
class Place:
    """Where cells are worked on.

    Attributes:
        data_dir: where data sets lie, see :func:`deepzero.data.load`.
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
    """What a cell does."""

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as JSON-able values."""
        ...

    def run(self, folder: Path, place: Place) -> dict[str, Any] | None:
        """The result as JSON-able values; None if it was stopped, and can be continued from ``folder``."""
        ...

    def forecast(self, place: Place) -> float | None:
        """About how many seconds it takes; None if it is short."""
        ...


@dataclass(frozen=True)
class Training:
    """One training run, continued where it was stopped.

    Its result holds figures of the summary, the curve of the epochs, and how many coordinates of each parameter a step
    takes (None where every step ranks them anew).
    """

    config: ClassificationConfig

    def settings(self) -> dict[str, Any]:
        """The configuration."""
        return {"training": asdict(self.config)}

    def run(self, folder: Path, place: Place) -> dict[str, Any] | None:
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
        epochs = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "epoch"]
        keep = json.loads((folder / RATIOS).read_bytes())["keep"]
        sizes = {name: p.numel() for name, p in outcome.model.named_parameters()}
        ranked_anew = self.config.sparsity.pattern == "alternating"
        counts = {name: round(keep.get(name, 1.0) * size) for name, size in sizes.items()}
        return {
            **{name: outcome.summary[name] for name in SUMMARY},
            "curve": {name: [record.get(name) for record in epochs] for name in CURVE},
            "coordinates": None if ranked_anew else counts,
        }

    def forecast(self, place: Place) -> float:
        """By timing a step, or from the cost table where a step is long."""
        return training_seconds(self.config, place.images(self.config), place.device)


@dataclass(frozen=True)
class Measurement:
    """A measurement that is made in one go.

    Attributes:
        function: measures; called with ``options`` and the device.
        options: JSON-able keywords.
        seconds: about how long it takes; None if it is short.
    """

    function: Callable[..., dict[str, Any]]
    options: Mapping[str, Any]
    seconds: float | None = None

    def settings(self) -> dict[str, Any]:
        """The function's name and its options."""
        return {"measurement": self.function.__name__, "options": dict(self.options)}

    def run(self, folder: Path, place: Place) -> dict[str, Any]:
        """What the function returns."""
        return self.function(**self.options, device=place.device)

    def forecast(self, place: Place) -> float | None:
        """As stated."""
        return self.seconds


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table.

    Attributes:
        labels: what tells it from the other cells of its experiment; ``seed`` is one of them where there are several.
        work: what it does.
    """

    labels: Labels
    work: Work

    @property
    def name(self) -> str:
        """The labels as the name of a file.

        >>> Cell(labels={"sparsity, %": 90, "method": "FO, dense", "seed": 1}, work=Measurement(dict, {})).name
        'sparsity=90-method=FO_dense-seed=1'
        """
        return "-".join(f"{_plain(key)}={_plain(str(value))}" for key, value in self.labels.items())


@dataclass(frozen=True)
class Outcome:
    """A finished cell.

    Attributes:
        labels: of the cell.
        result: JSON-able values by name.
    """

    labels: Labels
    result: Mapping[str, Any]


def _plain(text: str) -> str:
    return re.sub("[^A-Za-z0-9.+]+", "_", text).strip("_")


def all_finite(value: Any) -> bool:
    """Whether all numbers in a JSON-able value are finite.

    >>> all_finite({"a": [1, 2.5, None]}), all_finite({"a": [1, float("nan")]})
    (True, False)
    """
    if isinstance(value, Mapping):
        return all(map(all_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
