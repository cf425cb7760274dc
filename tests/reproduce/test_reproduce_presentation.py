"""Outcomes, and the tables and curves that experiments share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from deepzero.reproduce import Outcome, Outcomes
from deepzero.reproduce.presentation import (
    SPREAD,
    accuracy_series,
    accuracy_table,
    published_series,
    spread_text,
    time_table,
    trajectory,
)


def run(method: str, d: int, seed: int, accuracy: float, curve: Sequence[Any] = (), **values: Any) -> Outcome:
    labels = {"method": method, "d": d, "seed": seed}
    return Outcome(labels, {"test_accuracy": accuracy, "curve": {"validation_accuracy": list(curve)}, **values})


RUNS = Outcomes(
    [
        run("FO", 20, 0, 0.5, [0.1, 0.3], seconds=10.0),
        run("FO", 20, 1, 0.6, [0.3, 0.4], seconds=20.0),
        run("FO", 9, 0, 0.25, seconds=3.0),
        run("CGE", 9, 0, 0.125, seconds=7200.0),
        Outcome({"method": "errors"}, {"RGE": 1.0}),
    ]
)


def test_outcomes_are_asked_for_by_their_labels() -> None:
    assert len(RUNS.where(method="FO")) == 3
    assert len(RUNS.where(method="FO", d=20)) == 2
    assert len(RUNS.where()) == len(RUNS) == 5
    assert len(RUNS.where(d=None)) == 1  # the one without
    assert RUNS.where(method="FO", d=20)[1].result["test_accuracy"] == 0.6
    assert RUNS.labelled("method") == ["FO", "CGE", "errors"]
    assert RUNS.labelled("d") == [20, 9]
    assert RUNS.labelled("nothing") == []
    assert [o.labels["method"] for o in RUNS][-1] == "errors"


def test_numbers_of_outcomes() -> None:
    both = RUNS.where(method="FO", d=20)
    assert both.values("test_accuracy") == [0.5, 0.6]
    assert both.mean("test_accuracy") == pytest.approx(0.55)
    assert both.deviation("test_accuracy") == pytest.approx(math.sqrt(2 * 0.05**2))
    assert both.percent() == "55.00 ± 7.07 (2)"
    assert both.duration() == "15.0 s"
    assert RUNS.values("test_accuracy") == [0.5, 0.6, 0.25, 0.125]  # not of the one that has none


def test_numbers_of_one_outcome_and_of_none() -> None:
    one, none = RUNS.where(method="CGE"), RUNS.where(method="RGE")
    assert (one.percent(), one.deviation("test_accuracy"), one.duration()) == ("12.50 (1)", 0.0, "2.0 h")
    assert (none.percent(), none.deviation("test_accuracy"), none.duration()) == ("—", 0.0, "—")
    assert none.mean("test_accuracy") is None
    assert Outcomes([Outcome({}, {"validation_accuracy": None})]).mean("validation_accuracy") is None


def test_accuracy_by_two_labels() -> None:
    trained = Outcomes(o for o in RUNS if "seed" in o.labels)
    published = {"FO": {9: 40.0, 30: 99.0}, "RGE": {20: 37.5}}
    table = accuracy_table(trained, "d", published=published, text="{:,} p".format, note="More.")
    assert list(table.columns) == ["d", "FO", "CGE", "paper: FO", "paper: RGE"]
    assert [list(row) for row in table.rows] == [
        ["9 p", "25.00 (1)", "12.50 (1)", "40.00", "—"],
        ["20 p", "55.00 ± 7.07 (2)", "—", "—", "37.50"],
    ]
    assert table.note == f"{SPREAD} More."


def test_tables_of_nothing() -> None:
    nothing = Outcomes([])
    assert accuracy_table(nothing, "d", published={"FO": {1: 2.0}}).rows == []
    assert time_table(nothing, "d").rows == []
    assert accuracy_series(nothing, "d") == []


def test_time_by_two_labels() -> None:
    table = time_table(RUNS.where(method="FO"), "d")
    assert [list(row) for row in table.rows] == [["9", "3.0 s"], ["20", "15.0 s"]]


def test_accuracy_against_a_label() -> None:
    fo, cge = accuracy_series(Outcomes(o for o in RUNS if "seed" in o.labels), "d")
    assert (fo.name, fo.x) == ("FO", [9, 20])
    assert fo.y == pytest.approx([25.0, 55.0])
    assert fo.spread == pytest.approx([0.0, statistics.stdev([50, 60])])
    assert (cge.name, cge.x, cge.spread) == ("CGE", [9], [0.0])
    assert not fo.reference


def test_published_curves_are_references() -> None:
    [series] = published_series({"FO": {9: 40.0, 30: 99.0}})
    assert (series.name, series.x, series.y, series.reference) == ("FO, paper", [9, 30], [40.0, 99.0], True)


def test_the_course_of_training() -> None:
    curve = trajectory(RUNS.where(method="FO", d=20), "ours")
    assert (curve.name, curve.x) == ("ours", [1.0, 2.0])
    assert curve.y == pytest.approx([20.0, 35.0])
    assert curve.spread == pytest.approx([statistics.stdev([10, 30]), statistics.stdev([30, 40])])


def test_the_course_of_runs_that_look_now_and_then_or_never() -> None:
    seldom = Outcomes([run("FO", 1, seed, 0.5, [None, 0.25, None, 0.75]) for seed in range(2)])
    curve = trajectory(seldom, "ours")
    assert (curve.x, curve.y, curve.spread) == ([2.0, 4.0], [25.0, 75.0], [0.0, 0.0])
    never = trajectory(Outcomes([run("FO", 1, 0, 0.5, [None, None])]), "ours")
    assert (never.x, never.y, never.spread) == ([], [], [])
    assert trajectory(Outcomes([]), "ours").x == []


def test_mean_and_deviation_of_values() -> None:
    assert spread_text([0.5, 1.0, 1.5]) == "1.000 ± 0.500 (3)"
    assert spread_text([0.25], 1) == "0.2 (1)"
