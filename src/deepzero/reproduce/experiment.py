"""What an experiment is: cells to run, and how their outcomes are shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepzero.errors import InvalidInputError
from deepzero.report import Figure, Picture, Table
from deepzero.reproduce.cells import Cell, Outcome
from deepzero.tasks.classification import DataConfig
from deepzero.text import duration

SCALES = ("smoke", "small", "paper")
"""How large an experiment is run, from minutes to weeks."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is run.

    Attributes:
        caption: what was run, and how it differs from the paper.
        data: which images, and batches of how many; None for an experiment without images.
        epochs: passes over the training images.
        seeds: runs of each kind.
        grid: what is compared: values by name. Names that begin with ``epochs of`` or ``images of`` say how some of the
            methods differ from ``epochs`` and from the data.
    """

    caption: str
    data: DataConfig | None = None
    epochs: int = 1
    seeds: int = 1
    grid: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.grid[name]

    @property
    def images(self) -> DataConfig:
        """The data of an experiment that has images."""
        assert self.data is not None
        return self.data

    def changed(self, *, epochs: int | None = None, seeds: int | None = None, limit: int | None = None) -> Scale:
        """The scale with some of its numbers changed, which its caption then says."""
        changes = {
            "epochs": (self.epochs, epochs),
            "seeds": (self.seeds, seeds),
            "limit": (self.data and self.data.limit, limit),
        }
        given = {name: new for name, (own, new) in changes.items() if new is not None and new != own}
        if not given:
            return self
        said = ", ".join(f"{name} {value:,}" for name, value in given.items())
        grid = dict(self.grid)
        for key, value in grid.items():
            if key.startswith("epochs of "):
                grid[key] = given.get("epochs", value)
            elif key.startswith("images of "):
                grid[key] = min(value, given.get("limit", value))
        return replace(
            self,
            grid=grid,
            caption=f"{self.caption} Changed here: {said}.",
            data=self.data and replace(self.data, limit=given.get("limit", self.data.limit)),
            epochs=given.get("epochs", self.epochs),
            seeds=given.get("seeds", self.seeds),
        )


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """What a reader sees."""

    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()


class Outcomes(Sequence[Outcome]):
    """Finished cells, to be asked for by their labels."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._all = list(outcomes)

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._all)

    def where(self, **labels: object) -> Outcomes:
        """Those with these labels."""
        return Outcomes(o for o in self._all if all(o.labels.get(key) == value for key, value in labels.items()))

    def labelled(self, name: str) -> list[Any]:
        """The values of a label, each once, in the order in which they came."""
        return list(dict.fromkeys(o.labels[name] for o in self._all if name in o.labels))

    def values(self, key: str) -> list[float]:
        """A number of every result."""
        return [float(o.result[key]) for o in self._all if o.result.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Mean of a number; None if there is no result."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def deviation(self, key: str) -> float:
        """Sample standard deviation of a number; 0 for a single one."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def percent(self, key: str = "test_accuracy") -> str:
        """Mean and standard deviation in percent, and of how many.

        >>> runs = Outcomes(Outcome({"seed": s}, {"test_accuracy": a}) for s, a in enumerate((0.5, 0.52)))
        >>> runs.percent(), runs.where(seed=0).percent(), runs.where(seed=7).percent()
        ('51.00 ± 1.41 (2)', '50.00 (1)', '—')
        """
        values = [100 * value for value in self.values(key)]
        if not values:
            return MISSING
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"

    def duration(self, key: str = "seconds") -> str:
        """Mean time in a unit that suits it."""
        mean = self.mean(key)
        return MISSING if mean is None else duration(mean)


MISSING = "—"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure of the paper, or several that come from the same runs.

    Attributes:
        name: what the command line calls it.
        title: what it compares.
        scales: its sizes, by name.
        cells: the cells at a scale.
        present: tables and figures from finished cells, with the paper's numbers beside ours.
        also: further names.
    """

    name: str
    title: str
    scales: Mapping[str, Scale]
    cells: Callable[[Scale], Iterable[Cell]]
    present: Callable[[Outcomes, Scale], Presentation]
    also: Sequence[str] = ()

    def scale(self, name: str) -> Scale:
        """The scale called ``name``.

        Raises:
            InvalidInputError: there is none.
        """
        if name not in self.scales:
            raise InvalidInputError(f"{self.name} has the scales {', '.join(self.scales)}, got {name!r}")
        return self.scales[name]
