"""``deepzero report``: where it writes, what it refuses, exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from deepzero.cli import main
from deepzero.report.live_page import FAREWELL

TINY = ["--limit", "64", "--batch-size", "32", "--epochs", "1", "--estimator", "fo", "--sparsity", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "trained"
    assert main(["train", *TINY, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return tmp_path / "run"


def test_the_report_of_one_run_is_in_its_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.strip().replace("\n", "") == "report: run/report.html"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "report.html").exists()


def test_a_run_with_its_report_can_be_resumed_and_reported_again(run: Path) -> None:
    assert main(["report", "run"]) == 0
    first = (run / "report.html").read_bytes()
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert main(["report", "run"]) == 0
    assert (run / "report.html").read_bytes() == first


def test_the_report_of_several_runs_is_here(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, "again")
    assert main(["report", "run", "again"]) == 0
    assert "report: report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "<h1>Report on 2 runs</h1>" in text
    assert "Comparison of 2 runs" in text
    assert not (run / "report.html").exists()


def test_out_names_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--out", "[b] page.html"]) == 0
    assert "report: [b] page.html" in capsys.readouterr().out
    assert (tmp_path / "[b] page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "run", "--out", "run"], "try --out run/report.html"),
        (["report", "nowhere", "--out", "run"], "--out must be a file"),
        (["report", "nowhere", "--out", "missing/x.html"], "there is no folder missing"),
        (["report", "nowhere"], "nowhere holds no run, because there is no such folder"),
        (["report", "run", "nowhere"], "nowhere holds no run, because there is no such folder"),
        (["report", "."], "holds no run itself, but holds run; name one of them"),
        (["report"], "RUN is missing; type deepzero report RUN ..."),
        (
            ["report", "run", "--port", "8000"],
            "--port has an effect only with --watch; add --watch, or leave out --port",
        ),
        (["report", "run", "--interval", "1"], "--interval has an effect only with --watch"),
        (["report", "run", "--points", "5"], "--points has an effect only with --surface"),
        (["report", "run", "--data-dir", "here"], "--data-dir has an effect only with --surface"),
        (["report", "run", "--watch", "--interval", "0"], "interval must be a finite number above 0"),
        (["report", "run", "--watch", "--port", "99999"], "port must be a number from 0"),
        (["report", "run/run.json", "--watch"], "run/run.json is not a folder"),
        (["report", "run", "--surface", "--points", "4"], "points must be odd"),
        (["report", "nowhere", "--surface"], "nowhere holds no run"),
    ],
)
def test_bad_input_is_one_message_exit_code_2_and_no_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert not list(tmp_path.glob("**/*.html"))


def test_a_page_that_cannot_be_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepzero.files.replace_file", full)
    assert main(["report", "run"]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_the_help_says_where_the_page_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    assert "report.html in the folder of a single run" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_surface_is_measured_kept_and_shown_and_its_cost_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "run", "--surface", "--points", "3", "--radius", "0.5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "surface: run/surface.json: 9 forwards, and 1 for the gradient" in out
    assert json.loads((run / "surface.json").read_text())["distances"] == [-0.5, 0.0, 0.5]
    assert "Loss around the weights" in (run / "report.html").read_text()
    first = (run / "report.html").read_bytes()
    assert main(["report", "run"]) == 0  # is shown again, and measured once
    assert (run / "report.html").read_bytes() == first


def test_watching_a_finished_run_writes_its_page_and_ends(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run", "--watch"]) == 0
    assert "report: run/report.html" in capsys.readouterr().out
    assert (run / "report.html").exists()


@pytest.fixture
def watching(run: Path) -> Iterator[tuple[Popen, str]]:
    """A command that watches a run that has not finished, and its address."""
    (run / "summary.json").unlink()
    words = [sys.executable, "-m", "deepzero", "report", "run", "--watch", "--interval", "0.2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = iter(process.stdout.readline, "")
        yield process, next(line for line in said if "http://" in line).split("watching at ")[1].split()[0]
        process.kill()


def test_a_run_is_watched_until_it_has_finished(watching: tuple[Popen, str], run: Path, trained: Path) -> None:
    process, address = watching
    with urllib.request.urlopen(address, timeout=20) as page:
        assert "This run has not finished" in page.read().decode()
    shutil.copy(trained / "summary.json", run)
    with urllib.request.urlopen(f"{address}content?seen=0", timeout=20) as page:  # as the page does by itself
        assert page.headers["X-Done"] == "1"
    assert process.wait(FAREWELL) == 0
    assert "report: run/report.html" in process.stdout.read().replace("\n", "")
    assert "test accuracy" in (run / "report.html").read_text()


def test_ctrl_c_ends_watching_at_once_with_exit_code_0(watching: tuple[Popen, str], run: Path) -> None:
    process, address = watching
    with urllib.request.urlopen(address, timeout=20) as page:
        assert page.status == 200
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "stopped watching" in process.stdout.readline()
    assert time.monotonic() - begun < FAREWELL
    assert process.wait(60) == 0
    assert not (run / "report.html").exists()
