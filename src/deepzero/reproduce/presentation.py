"""Finished cells, and the tables and curves that most experiments make of them: ours beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepzero.report import Figure, Picture, Series, Table
from deepzero.reproduce.cells import Labels
from deepzero.text import duration

MISSING = "—"
METHOD = "method"
"""The label by which tables and curves compare."""

Curves = Mapping[str, Mapping[Any, float]]
"""Published numbers: by method, then by abscissa."""

SPREAD = "Mean ± standard deviation (runs)."


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """The tables, figures and pictures of an experiment."""

    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Outcome:
    """A finished cell.

    Attributes:
        labels: of the cell.
        result: JSON-able values by name.
    """

    labels: Labels
    result: Mapping[str, Any]


class Outcomes(Sequence[Outcome]):
    """Finished cells, selected by their labels."""

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

    def by(self, name: str) -> dict[Any, Outcomes]:
        """The outcomes by the value of a label: numbers from the smallest on, texts in the order in which they came.

        >>> runs = Outcomes(Outcome({"width": width, "seed": seed}, {}) for seed in (0, 1) for width in (8, 4))
        >>> {width: len(some) for width, some in runs.by("width").items()}
        {4: 2, 8: 2}
        """
        values = self.labelled(name)
        if not any(isinstance(value, str) for value in values):
            values.sort()
        return {value: self.where(**{name: value}) for value in values}

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
        """Mean and standard deviation in percent, and the number of runs.

        >>> runs = Outcomes(Outcome({"seed": s}, {"test_accuracy": a}) for s, a in enumerate((0.5, 0.52)))
        >>> runs.percent(), runs.where(seed=0).percent(), runs.where(seed=7).percent()
        ('51.00 ± 1.41 (2)', '50.00 (1)', '—')
        """
        return spread_text([100 * value for value in self.values(key)], 2)

    def duration(self, key: str = "seconds") -> str:
        """Mean time in a unit that suits it."""
        mean = self.mean(key)
        return MISSING if mean is None else duration(mean)

    def queries(self) -> str:
        """Mean number of losses that a run evaluated."""
        mean = self.mean("queries")
        return MISSING if mean is None else f"{mean:,.0f}"


def spread_text(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation of some values, and their number.

    >>> spread_text([1.0, 2.0, 3.0], 1), spread_text([])
    ('2.0 ± 1.0 (3)', '—')
    """
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread} ({len(values)})"


def accuracy_table(
    runs: Outcomes, label: str, *, published: Curves | None = None, text: Callable[[Any], str] = str, note: str = ""
) -> Table:
    """Test accuracy in percent by a label (rows) and method (columns).

    Args:
        runs: training runs.
        label: of the rows.
        published: the paper's numbers, shown in columns of their own where there is one.
        text: a row's label as text.
        note: added to what the numbers mean.
    """
    note = f"{SPREAD} {note}".strip()
    table = _by_method(runs, label, "Test accuracy, %", Outcomes.percent, text=text, note=note)
    curves = published or {}
    theirs = [[f"{c[row]:.2f}" if row in c else MISSING for c in curves.values()] for row in runs.by(label)]
    return replace(
        table,
        columns=[*table.columns, *(f"paper: {name}" for name in curves)],
        rows=[[*ours, *others] for ours, others in zip(table.rows, theirs, strict=True)],
    )


def time_table(runs: Outcomes, label: str, *, text: Callable[[Any], str] = str) -> Table:
    """Mean time of a run by a label (rows) and method (columns)."""
    note = "Mean time of whole runs, validation included. Other processes may have shared the cores."
    return _by_method(runs, label, "Time of a run", Outcomes.duration, text=text, note=note)


def query_table(runs: Outcomes, label: str, *, text: Callable[[Any], str] = str) -> Table:
    """Mean number of function values of a run by a label (rows) and method (columns)."""
    note = "Mean number of losses that a run evaluated."
    return _by_method(runs, label, "Queries of a run", Outcomes.queries, text=text, note=note)


def _by_method(
    runs: Outcomes, label: str, title: str, entry: Callable[[Outcomes], str], *, text: Callable[[Any], str], note: str
) -> Table:
    methods = runs.labelled(METHOD)
    rows = [
        [text(value), *(entry(some.where(**{METHOD: method})) for method in methods)]
        for value, some in runs.by(label).items()
    ]
    return Table(title=title, columns=[label, *map(str, methods)], rows=rows, note=note)


def accuracy_series(runs: Outcomes, label: str) -> list[Series]:
    """Test accuracy in percent against a label, a curve for each method."""
    return [
        Series(
            name=method,
            x=list(points := some.by(label)),
            y=[100 * (runs.mean("test_accuracy") or 0.0) for runs in points.values()],
            spread=[100 * runs.deviation("test_accuracy") for runs in points.values()],
        )
        for method, some in runs.by(METHOD).items()
    ]


def accuracy_figures(
    runs: Outcomes, label: str, *, title: str, x_label: str = "", x_log: bool = False, published: Curves | None = None
) -> list[Figure]:
    """Test accuracy against a label, a curve for each method; the paper's in a figure beside ours.

    Args:
        runs: training runs.
        label: of the abscissa.
        title: of the figure.
        x_label: text of the abscissa, if not the label.
        x_log: a logarithmic abscissa.
        published: the paper's curves.
    """
    ours = Figure(
        title=title,
        x_label=x_label or label,
        y_label="test accuracy, %",
        series=accuracy_series(runs, label),
        x_log=x_log,
    )
    return beside(ours, published or {})


def beside(ours: Figure, curves: Curves) -> list[Figure]:
    """Our figure, and the paper's beside it where there is one: at a reduced scale they do not share an ordinate."""
    if not curves:
        return [ours]
    return [ours, replace(ours, title=f"{ours.title}, as published", series=published_series(curves))]


def published_series(curves: Curves) -> list[Series]:
    """The paper's curves."""
    return [
        Series(name=f"{name}, paper", x=list(curve), y=list(curve.values()), reference=True)
        for name, curve in curves.items()
    ]


def trajectory(runs: Outcomes, name: str) -> Series:
    """Validation accuracy in percent by epoch, mean and deviation of the runs; epochs without a look are left out.

    Args:
        runs: training runs of equal length.
        name: of the curve.
    """
    curves = [run.result["curve"]["validation_accuracy"] for run in runs]
    looks = {epoch: at for epoch, at in enumerate(zip(*curves, strict=True), start=1) if None not in at}
    points = [[100 * value for value in at] for at in looks.values()]
    return Series(
        name=name,
        x=[float(epoch) for epoch in looks],
        y=[statistics.fmean(point) for point in points],
        spread=[statistics.stdev(point) if len(point) > 1 else 0.0 for point in points],
    )
