"""``deepzero correct``, from words to a page with pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("phi", reason="PhiFlow is not installed: pip install 'deepzero[physics]'")

from deepzero.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPZERO_DATA", str(tmp_path / "data"))


def test_from_a_recipe_to_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["correct", "wake-tiny", "--method", "opaque", "--directions", "3", "--seed", "1"]
    assert main([*words, "--max-minutes", "1e-9"]) == 75
    out = capsys.readouterr().out
    assert "about" in out.splitlines()[0]
    assert "deepzero correct --resume --out runs/correct-wake-tiny-opaque-seed1" in out
    assert main(["correct", "--resume", "--out", "runs/correct-wake-tiny-opaque-seed1"]) == 0
    out = capsys.readouterr().out
    assert "reference simulations, step 32/32" in out
    assert "of the solver alone" in out
    summary = json.loads(Path("runs/correct-wake-tiny-opaque-seed1/summary.json").read_bytes())
    assert f"mean absolute error {summary['mae']:.4f}" in out
    assert summary["config"]["correction"]["directions"] == 3
    assert len(list(Path("data/wake-flow").glob("wake-flow-*/frames.safetensors"))) == 1
    assert main(["report", "runs/correct-wake-tiny-opaque-seed1", "--out", "page.html"]) == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Error over time" in page
    assert page.count("data:image/") == 2


def test_a_page_of_what_is_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "wake-tiny", "--max-minutes", "1e-9", "--out", "begun"]) == 75
    assert main(["report", "begun", "--out", "page.html"]) == 0
    assert "deepzero correct --resume --out begun" in Path("page.html").read_text(encoding="utf-8")
    capsys.readouterr()


def test_the_full_recipe_says_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepzero.tasks.correction.correction_time.REPEATS", 1)
    assert main(["correct", "wake", "--method", "zo-sol", "--max-minutes", "1e-9", "--out", "full"]) == 75
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("zo-sol: DeepZero")
    assert first.endswith("days")


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["correct", "wake-tin"]) == 2
    assert "did you mean wake-tiny" in capsys.readouterr().err
    assert main(["correct", "wake-tiny", "--method", "sol"]) == 2
    assert "method" in capsys.readouterr().err
    assert main(["correct", "--resume"]) == 2
    assert "name the folder of the run to resume" in capsys.readouterr().err
