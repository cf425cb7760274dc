"""Recorded results stay of use: options that came later do not change the settings of cells that do not use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepzero.report.figures import Document
from deepzero.reproduce.experiments import EXPERIMENTS
from deepzero.reproduce.reproduction_folder import ReproductionFolder

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"


@pytest.mark.parametrize("name", ["fig1d", "fig4", "tab1", "tab2"])
def test_a_record_of_this_repository_is_taken_over(tmp_path: Path, name: str) -> None:
    document = Document.from_dict(json.loads((RECORDS / f"reproduce-{name}.json").read_bytes()))
    taken = []
    for scale_name, scale in EXPERIMENTS[name].scales.items():
        folder = ReproductionFolder.open(tmp_path / scale_name, {"scale": scale_name})
        cells = list(EXPERIMENTS[name].cells(scale))
        taken.append(folder.take_over(cells, document))
        assert all(folder.kept(cell)["result"] for cell in cells if folder.has(cell))
    assert max(taken) == len(document.cells)
