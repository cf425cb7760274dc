"""Every experiment from its first cell to its report, at the scale that needs no data and little time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepzero.report import Document
from deepzero.reproduce import EXPERIMENTS, Request, reproduce


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_from_start_to_report(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPZERO_DATA", str(tmp_path / "data"))  # where fig6 keeps its reference simulations
    if name == "fig6":
        pytest.importorskip("phi", reason="PhiFlow is not installed: pip install 'deepzero[physics]'")
    request = Request(experiment=EXPERIMENTS[name], scale="smoke")
    done = reproduce(request, out=tmp_path / "out")
    count = len(request.cells())
    assert (done.missing, done.stopped, len(done.document.cells)) == (0, False, count)
    assert done.document.facts["cells"] == f"{count} of {count} finished"
    assert done.document.tables
    assert all(table.rows for table in done.document.tables)
    for figure in done.document.figures:
        assert any(len(series.x) for series in figure.series)
    assert any(not series.reference for figure in done.document.figures for series in figure.series)
    kept = Document.from_dict(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert [table.title for table in kept.tables] == [table.title for table in done.document.tables]
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.svg"))
    assert figures == [f"figure-{n}.svg" for n in range(1, 1 + len(done.document.figures))]
    for cell in done.document.cells:
        assert 0 <= cell["result"].get("test_accuracy", 0) <= 1
