"""``deepzero report``: where it writes, what it refuses, exit codes."""

from __future__ import annotations

import shutil

import pytest

from deepzero.cli import main

TINY = ["--limit", "64", "--batch-size", "32", "--epochs", "1", "--estimator", "fo", "--sparsity", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "trained"
    assert main(["train", *TINY, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    return tmp_path / "run"


def test_the_report_of_one_run_is_in_its_folder(run, tmp_path, capsys):
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.strip().replace("\n", "") == "report: run/report.html"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not (tmp_path / "report.html").exists()


def test_a_run_with_its_report_can_be_resumed_and_reported_again(run):
    assert main(["report", "run"]) == 0
    first = (run / "report.html").read_bytes()
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert main(["report", "run"]) == 0
    assert (run / "report.html").read_bytes() == first


def test_the_report_of_several_runs_is_here(run, tmp_path, capsys):
    shutil.copytree(run, "again")
    assert main(["report", "run", "again"]) == 0
    assert "report: report.html" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "<h1>Report on 2 runs</h1>" in text
    assert "Comparison of 2 runs" in text
    assert not (run / "report.html").exists()


def test_out_names_the_file(run, tmp_path, capsys):
    assert main(["report", "run", "--out", "[b] page.html"]) == 0
    assert "report: [b] page.html" in capsys.readouterr().out
    assert (tmp_path / "[b] page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "run", "--out", "run"], "try --out run/report.html"),
        (["report", "nowhere", "--out", "run"], "--out must be a file"),
        (["report", "nowhere", "--out", "missing/x.html"], "there is no folder missing"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "run", "nowhere"], "nowhere is not a folder"),
        (["report", "."], "it holds such folders: run"),
        (["report"], "expected the folder of a run"),
    ],
)
def test_bad_input_is_one_message_exit_code_2_and_no_file(run, tmp_path, capsys, words, expected):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert not list(tmp_path.glob("**/*.html"))


def test_a_page_that_cannot_be_written(run, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepzero.training.files.replace_file", full)
    assert main(["report", "run"]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_the_help_says_where_the_page_goes(capsys):
    assert main(["report", "--help"]) == 0
    assert "report.html in the folder of a single run" in " ".join(capsys.readouterr().out.replace("│", " ").split())
