"""Tables and curves that most experiments share: a number by two labels, ours beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from deepzero.report import Figure, Series, Table
from deepzero.reproduce.experiment import MISSING, Outcomes

Curves = Mapping[str, Mapping[Any, float]]
"""Published numbers: by method, then by abscissa."""

SPREAD = "Mean ± standard deviation (runs)."


def accuracy_table(
    runs: Outcomes,
    *,
    title: str,
    rows: str,
    columns: str,
    published: Curves | None = None,
    text: Callable[[Any], str] = str,
    note: str = "",
) -> Table:
    """Test accuracy in percent: a row for each value of one label, a column for each of another.

    Args:
        runs: training runs.
        title: of the table.
        rows: label of the rows.
        columns: label of the columns.
        published: the paper's numbers, shown in columns of their own where there is one.
        text: a row's label as text.
        note: added to what the numbers mean.
    """
    methods = runs.labelled(columns)
    curves = published or {}
    body = []
    for row in _sorted(runs.labelled(rows)):
        ours = [runs.where(**{rows: row, columns: method}).percent() for method in methods]
        theirs = [f"{curve[row]:.2f}" if row in curve else MISSING for curve in curves.values()]
        body.append([text(row), *ours, *theirs])
    heads = [rows, *map(str, methods), *(f"paper: {name}" for name in curves)]
    return Table(title=title, columns=heads, rows=body, note=f"{SPREAD} {note}".strip())


def time_table(runs: Outcomes, *, title: str, rows: str, columns: str, text: Callable[[Any], str] = str) -> Table:
    """Mean time of a run, by two labels."""
    note = "Mean time of whole runs, validation included. Other processes may have shared the cores."
    return _two_labels(runs, Outcomes.duration, title=title, rows=rows, columns=columns, text=text, note=note)


def query_table(runs: Outcomes, *, title: str, rows: str, columns: str, text: Callable[[Any], str] = str) -> Table:
    """Mean number of function values of a run, by two labels."""

    def count(of: Outcomes) -> str:
        mean = of.mean("queries")
        return MISSING if mean is None else f"{mean:,.0f}"

    note = "Mean number of losses that a run evaluated."
    return _two_labels(runs, count, title=title, rows=rows, columns=columns, text=text, note=note)


def _two_labels(
    runs: Outcomes,
    entry: Callable[[Outcomes], str],
    *,
    title: str,
    rows: str,
    columns: str,
    text: Callable[[Any], str],
    note: str,
) -> Table:
    methods = runs.labelled(columns)
    body = [
        [text(row), *(entry(runs.where(**{rows: row, columns: method})) for method in methods)]
        for row in _sorted(runs.labelled(rows))
    ]
    return Table(title=title, columns=[rows, *map(str, methods)], rows=body, note=note)


def accuracy_series(runs: Outcomes, *, x: str, by: str) -> list[Series]:
    """Test accuracy in percent against one label, a curve for each value of another."""
    series = []
    for method in runs.labelled(by):
        of = runs.where(**{by: method})
        points = _sorted(of.labelled(x))
        means = [100 * (of.where(**{x: point}).mean("test_accuracy") or 0.0) for point in points]
        spread = [100 * of.where(**{x: point}).deviation("test_accuracy") for point in points]
        series.append(Series(name=str(method), x=points, y=means, spread=spread))
    return series


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


def spread_text(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation of some values.

    >>> spread_text([1.0, 2.0, 3.0], 1), spread_text([])
    ('2.0 ± 1.0 (3)', '—')
    """
    if not values:
        return MISSING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread} ({len(values)})"


def _sorted(values: list[Any]) -> list[Any]:
    return values if any(isinstance(value, str) for value in values) else sorted(values)
