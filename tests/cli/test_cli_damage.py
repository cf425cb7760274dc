"""Commands on damaged folders and data: exit code 1 or 2 and one line that says what is wrong, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import damage
import pytest

from deepzero.cli import main

TINY = ["--limit", "64", "--batch-size", "32", "--epochs", "1", "--estimator", "fo", "--sparsity", "0"]
ONE = ["--only", "method=FO"]
SEEDS = 6
"""Damages of each file."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished, and an image to predict."""
    path = tmp_path_factory.mktemp("finished")
    assert main(["train", *TINY, "--out", str(path / "run"), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def interrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run before its end: no summary, and checkpoints."""
    path = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(finished / "run", path / "run")
    for name in ("summary.json", "model.safetensors", "model.json", "plot.png", "README.md"):
        (path / "run" / name).unlink()
    return path


def refuses_or_works(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str], *, also: tuple[int, ...] = (0,)
) -> int:
    """Run a command; its exit code, after a look at what it said."""
    capsys.readouterr()
    code = main([*words, "--quiet"])
    err = capsys.readouterr().err.strip()
    assert code in (1, 2, *also), f"{what}: {code}"
    if code in (1, 2):
        lines = err.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, f"{what}: {err}"
        assert lines[-1].startswith("error: ") or "no usable checkpoint" in err, f"{what}: {err}"
    return code


def files_in(folder: Path) -> list[str]:
    """The files that commands read, by their paths in a folder."""
    unread = (".png", ".md", ".html", ".svg", ".gif")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if path.suffix not in unread)


def each_damage(whole: Path, to: Path, run: Callable[[str], object], *, seeds: int = SEEDS, start: int = 0) -> None:
    """Call ``run`` on one copy after the other in which one file is damaged."""
    for name in files_in(whole):
        for seed in range(start, start + seeds):
            run(damage.copy_with_damage(whole, name, seed, to))


def test_a_report_of_a_damaged_folder(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    words = ["report", str(copy / "run"), "--out", str(tmp_path / "page.html")]
    each_damage(finished, copy, lambda what: refuses_or_works(words, what, capsys), seeds=2)


@pytest.mark.parametrize("command", [["predict", "x.csv"], ["evaluate"], ["export", "x.pt2"]], ids=lambda c: c[0])
def test_use_of_a_damaged_run(
    command: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    words = [command[0], str(copy / "run"), *(str(tmp_path / name) for name in command[1:])]
    for name in ("run.json", "summary.json", "model.json", "model.safetensors"):
        for seed in range(SEEDS):
            what = damage.copy_with_damage(finished, f"run/{name}", seed, copy)
            refuses_or_works(words, what, capsys)


@pytest.mark.parametrize("name", ["run.json", "ratios.json", "metrics.jsonl"])
def test_the_resume_of_a_damaged_run(
    name: str, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for seed in range(SEEDS):
        what = damage.copy_with_damage(interrupted, f"run/{name}", seed, copy)
        refuses_or_works(["train", "--resume", "--out", str(copy / "run")], what, capsys)


def test_a_damaged_line_of_the_records_does_not_lose_a_run_at_its_end(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(interrupted / "run", tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = {key: value for key, value in json.loads(lines[0]).items() if key != "loss"}
    padding = " " * (len(lines[0]) - len(json.dumps(first)) - 1)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join([json.dumps(first) + padding + "\n", *lines[1:]]))
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert "plot.pngisleftout" in "".join(capsys.readouterr().out.split())  # wherever the line is broken
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_the_resume_from_a_damaged_checkpoint_ends_as_the_run_did(
    name: str, finished: Path, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = max((interrupted / "run" / "checkpoints").glob("step-*")).relative_to(interrupted)
    copy = tmp_path / "copy"
    for seed in range(4):
        what = damage.copy_with_damage(interrupted, f"{newest}/{name}", seed, copy)
        assert refuses_or_works(["train", "--resume", "--out", str(copy / "run")], what, capsys) == 0, what
        weights = (copy / "run" / "model.safetensors").read_bytes()
        assert weights == (finished / "run" / "model.safetensors").read_bytes(), what


def test_the_resume_of_a_finished_run_that_is_damaged(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for name in ("summary.json", "model.safetensors"):
        for seed in range(SEEDS):
            what = damage.copy_with_damage(finished, f"run/{name}", seed, copy)
            refuses_or_works(["train", "--resume", "--out", str(copy / "run")], what, capsys)


def test_damaged_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    whole.mkdir()
    rows = "".join(f"{k % 7},{k / 7:.3f},{'xyz'[k % 3]}\n" for k in range(60))
    (whole / "table.csv").write_text(f"a,b,label\n{rows}")
    for seed in range(3 * SEEDS):
        what = damage.copy_with_damage(whole, "table.csv", seed, copy)
        refuses_or_works(["data", str(copy / "table.csv")], what, capsys)
    for seed in range(3):
        what = damage.copy_with_damage(whole, "table.csv", seed, copy)
        data = ["--data", str(copy / "table.csv"), "--out", str(tmp_path / f"run-{seed}"), "--epochs", "1"]
        refuses_or_works(["train", *data], what, capsys)


def test_a_damaged_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    whole.mkdir()
    (whole / "own.json").write_text(json.dumps({"recipe": "digits", "training": {"epochs": 2}, "seed": 1}))
    for seed in range(3 * SEEDS):
        what = damage.copy_with_damage(whole, "own.json", seed, copy)
        words = ["train", "--config", str(copy / "own.json"), "--max-minutes", "1e-9"]
        refuses_or_works([*words, "--out", str(tmp_path / f"run-{seed}")], what, capsys, also=(0, 75))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reproduced")
    words = ["reproduce", "fig2", "--scale", "smoke", *ONE, "--out", str(path / "fig2"), "--quiet"]
    assert main(words) == 0
    return path


def test_a_damaged_reproduction(reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    names = [name for name in files_in(reproduced) if name.endswith(".json")]
    cells = [name for name in names if "/cells/" in name][:2]
    for name in [name for name in names if "/cells/" not in name] + cells:
        for seed in range(4):
            what = damage.copy_with_damage(reproduced, name, seed, copy)
            refuses_or_works(["report", str(copy / "fig2"), "--out", str(tmp_path / "page.html")], what, capsys)
            if name.startswith("fig2/results") or seed > 2:
                continue
            words = ["reproduce", "fig2", "--scale", "smoke", *ONE, "--out", str(copy / "fig2")]
            refuses_or_works(words, what, capsys)


def test_a_damaged_record_of_a_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A correction takes long to make; its record alone decides whether the command goes on."""
    pytest.importorskip("phi", reason="needs the extra physics")
    monkeypatch.setenv("DEEPZERO_DATA", str(tmp_path / "data"))
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    assert main(["correct", "wake-tiny", "--max-minutes", "1e-9", "--out", str(whole / "run"), "--quiet"]) == 75
    for seed in range(2 * SEEDS):
        what = damage.copy_with_damage(whole, "run/run.json", seed, copy)
        words = ["correct", "--resume", "--out", str(copy / "run"), "--max-minutes", "1e-9"]
        refuses_or_works(words, what, capsys, also=(0, 75))
        refuses_or_works(["report", str(copy / "run"), "--out", str(tmp_path / "page.html")], what, capsys)
