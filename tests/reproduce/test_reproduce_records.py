"""Recorded results stay of use: the cells of today have the settings of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deepzero.report.figures import Document
from deepzero.reproduce import EXPERIMENTS, Request
from deepzero.reproduce.reproduction_folder import ReproductionFolder

RECORDS = sorted((Path(__file__).parents[2] / "benchmarks" / "records").glob("reproduce-*.json"))


def test_there_are_records() -> None:
    recorded = {json.loads(path.read_bytes())["facts"]["experiment"] for path in RECORDS}
    assert len(recorded) >= 15
    assert recorded <= EXPERIMENTS.keys()


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_all_cells_of_a_record_are_taken_over(tmp_path: Path, path: Path) -> None:
    document = Document.from_dict(json.loads(path.read_bytes()))
    facts = document.facts
    epochs = re.search(r"--epochs (\d+)", facts["command"])
    request = Request(
        experiment=EXPERIMENTS[facts["experiment"]], scale=facts["scale"], epochs=int(epochs[1]) if epochs else None
    )
    folder = ReproductionFolder.open(tmp_path / "out", request.identity())
    assert folder.take_over(request.every, document) == len(document.cells) > 0
    assert all(folder.record(cell)["result"] for cell in request.every if folder.has(cell))
    assert document.caption == request.size.caption
