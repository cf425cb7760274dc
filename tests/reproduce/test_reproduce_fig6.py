"""Fig. 6 from made-up cells: ratios, short and long errors, curves by solver calls, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from deepzero.reproduce import find
from deepzero.reproduce.presentation import MISSING, Outcome, Outcomes

FIG6 = find("fig6")
SMALL = FIG6.scale("small")


def result(mae: float | None, calls: int, *, soon: float = 0.01) -> dict[str, Any]:
    points = [{"mae": mae, "solver_calls": calls * k // 4, "seconds": 1.0} for k in (1, 2, 3, 4)]
    return {
        "mae": mae,
        "source_mae": 0.15,
        "maes": [mae] * 5,
        "by_step": [soon] * 10 + [0.1 if mae is not None else None] * 40,
        "curve": points,
        "solver_calls": calls,
        "skipped": 0,
        "seconds": 60.0,
    }


def outcomes(**changes: float | None) -> Outcomes:
    maes = {"src": 0.15, "non": 0.08, "zo-sol": 0.06, "opaque": 0.04, "non, longer": 0.07, "fo-sol": 0.03, **changes}
    return Outcomes(
        Outcome({"method": name, "seed": seed}, result(mae, 1000 if name in ("zo-sol", "opaque") else 10))
        for name, mae in maes.items()
        for seed in ((0,) if name == "src" else (0, 1))
    )


def test_methods_stand_beside_the_paper_s_ratios() -> None:
    shown = FIG6.present(outcomes(), SMALL)
    rows = {row[0]: dict(zip(shown.tables[0].columns, row, strict=True)) for row in shown.tables[0].rows}
    assert list(rows) == ["src", "non", "zo-sol", "opaque", "non, longer", "fo-sol"]
    assert rows["zo-sol"]["ratio to src"] == "0.400"
    assert rows["zo-sol"]["paper: ratio to src"] == f"{0.119 / 0.180:.3f}"
    assert rows["opaque"]["paper: ratio to src"] == MISSING
    assert rows["non"]["error"] == "0.0800 ± 0.0000 (2)"
    assert rows["non"]["up to step 100"] == "0.0100 ± 0.0000 (2)"
    assert rows["src"]["error"] == "0.1500 (1)"
    assert rows["zo-sol"]["solver calls"] == "1,000"
    assert "0.180, 0.153 (non), 0.119 (zo-sol) and 0.074 (fo-sol)" in shown.tables[0].note


def test_curves_are_over_solver_calls_and_references_are_lines() -> None:
    calls, steps = FIG6.present(outcomes(), SMALL).figures
    assert calls.x_label.startswith("solver calls")
    curves = {series.name: series for series in calls.series}
    assert list(curves["opaque"].x) == [250, 500, 750, 1000]
    assert not curves["opaque"].reference
    assert list(curves["fo-sol"].x) == [0.0, 1000]
    assert list(curves["fo-sol"].y) == [0.03, 0.03]
    assert curves["fo-sol"].reference
    assert next(s for s in steps.series if s.name == "non").x[:3] == [1.0, 11.0, 21.0]


def test_a_flow_that_blew_up_has_no_mean() -> None:
    shown = FIG6.present(outcomes(opaque=None), SMALL)
    row = next(row for row in shown.tables[0].rows if row[0] == "opaque")
    assert row[1] == MISSING
    assert row[2] == "0.0100 ± 0.0000 (2)"
    assert row[4] == MISSING
    assert next(series for series in shown.figures[0].series if series.name == "opaque").x == []


def test_nothing_finished_is_nothing_shown() -> None:
    assert FIG6.present(Outcomes([]), SMALL).tables == ()


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_cells_differ_in_their_settings(scale: str) -> None:
    cells = list(FIG6.cells(FIG6.scale(scale)))
    settings = [str(cell.work.settings()) for cell in cells]
    assert len(set(settings)) == len(settings)
    assert sum(cell.labels["method"] == "src" for cell in cells) == 1
    small = {cell.labels["method"]: cell.work.config for cell in FIG6.cells(SMALL)}  # type: ignore[attr-defined]
    assert small["non, longer"].method == "non"
    assert small["non, longer"].steps > small["non"].steps
