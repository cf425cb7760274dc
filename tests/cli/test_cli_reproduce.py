"""``deepzero reproduce``: what it prints, what it refuses, exit codes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tyro

from deepzero.cli import main
from deepzero.cli.reproduce import Reproduce
from deepzero.reproduce import EXPERIMENTS, SCALES, names

FO = ["reproduce", "fig2", "--scale", "smoke", "--only", "method=FO"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def test_without_a_name_the_experiments_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in names():
        assert name in out
    for experiment in EXPERIMENTS.values():
        assert experiment.title in out
    assert list(tmp_path.iterdir()) == []


def test_from_start_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FO) == 0
    out = capsys.readouterr().out
    assert "Digits, 64 images of 8x8 pixels, 1 epoch." in out
    assert "Test accuracy, %" in out
    assert "paper: FO" in out
    assert "see runs/fig2-smoke/report.html" in out
    assert "are left" not in out
    values = json.loads((tmp_path / "runs" / "fig2-smoke" / "results.json").read_text())
    assert values["facts"]["command"] == "deepzero reproduce fig2 --scale smoke --only method=FO"
    assert values["facts"]["cells"] == "1 of 5 finished"
    [cell] = values["cells"]
    accuracy = f"{100 * cell['result']['test_accuracy']:.2f} (1)"
    assert accuracy in out


def test_a_further_name_is_the_same_experiment_in_the_same_folder(tmp_path: Path) -> None:
    words = ["--scale", "smoke", "--only", "method=FO, dense"]
    assert main(["reproduce", "figA4", *words]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["fig4-smoke"]


def test_a_time_limit_is_exit_code_75_and_the_same_command_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*FO, "--out", "here"]
    assert main([*words, "--max-minutes", "1e-9"]) == 75
    out = capsys.readouterr().out
    assert "stopped; 1 cells are left: the same command continues" in out
    assert (tmp_path / "here" / "report.html").exists()
    assert main(words) == 0
    assert "stopped" not in capsys.readouterr().out
    before = (tmp_path / "here" / "cells" / "d=406-method=FO-seed=0.json").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "here" / "cells" / "d=406-method=FO-seed=0.json").read_bytes() == before


def test_shares_make_up_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "fig4", "--scale", "smoke", "--epochs", "1", "--only", "sparsity, %=80", "--out", "here"]
    only = [*words, "--limit", "32"]
    assert main([*only, "--share", "1/2"]) == 0
    assert "this share is done; 1 cells are left to the others" in capsys.readouterr().out
    assert main([*only, "--share", "2/2"]) == 0
    assert "left" not in capsys.readouterr().out
    assert len(list((tmp_path / "here" / "cells").glob("*.json"))) == 3


def test_known_results_are_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FO, "--out", "there"]) == 0
    first = (tmp_path / "there" / "results.json").read_bytes()
    assert main([*FO, "--out", "here", "--known", "there/results.json"]) == 0
    assert (tmp_path / "here" / "results.json").read_bytes() == first
    assert not (tmp_path / "here" / "cells" / "d=406-method=FO-seed=0").exists()
    capsys.readouterr()
    assert main([*FO, "--out", "new", "--known", "nothing.json"]) == 2
    assert "nothing.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_of_a_record_names_what_the_results_depend_on_and_no_place() -> None:
    words = ("fig2", "--scale", "paper", "--epochs", "10", "--only", "d=730", "method=RGE, small-step limit")
    elsewhere = ("--out", "there", "--data-dir", "data", "--share", "1/2", "--max-minutes", "5", "--known", "it.json")
    asked = tyro.cli(Reproduce, args=[*words, *elsewhere])
    assert shlex.split(asked.command) == ["deepzero", "reproduce", *words]
    assert tyro.cli(Reproduce, args=["fig2", "--scale", "small"]).command == "deepzero reproduce fig2"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fig22"], "unknown experiment 'fig22' (did you mean fig2?)"),
        (["fig2", "--share", "2"], "--share takes K/N, got '2'; try --share 1/2 and --share 2/2"),
        (["fig2", "--share", "0/2"], "a share is k/n with k from 1 to n, got 0/2; try 1/2"),
        (["fig2", "--share", "3/2"], "got 3/2"),
        (["fig2", "--only", "730"], "--only takes LABEL=VALUE, got '730'; try --only d=730"),
        (["fig2", "--only", "=730"], "--only takes LABEL=VALUE"),
        (["fig2", "--only", "d=731"], "no cell of fig2 has these labels; there are: d: 730, 3700"),
        (["fig2", "--only", "depth=1"], "there are: d: 730"),
        (["fig2", "--seeds", "0"], "seeds must be an integer of at least 1, got 0"),
        (["fig2", "--epochs", "-1"], "epochs must be an integer of at least 1, got -1"),
        (["fig3", "--epochs", "3"], "fig3 at the scale 'small' does not depend on epochs; leave epochs out"),
        (["fig2", "--device", "tpu"], "device must be cpu"),
        (["fig2", "--max-minutes", "0"], "--max-minutes must be a finite number above 0"),
    ],
)
def test_bad_input_is_one_message_exit_code_2_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["reproduce", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPZERO_DATA", raising=False)
    assert main(["reproduce", "fig2", "--only", "method=FO", "d=730", "--data-dir", "nowhere"]) == 2
    assert "CIFAR-10" in capsys.readouterr().err


def test_a_folder_that_holds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("text")
    assert main([*FO, "--out", "."]) == 2
    assert "is not an empty folder; choose another --out" in capsys.readouterr().err
    assert main([*FO, "--out", "here"]) == 0
    assert main(["reproduce", "tab1", "--scale", "smoke", "--out", "here"]) == 2
    assert "experiment: 'fig2' there, 'tab1' asked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["--scale", "tiny"], "smoke"), (["--seed", "3"], "--seeds"), (["--epochs", "many"], "--epochs")],
)
def test_words_that_are_no_option_name_what_there_is(
    capsys: pytest.CaptureFixture[str], arguments: list[str], near: str
) -> None:
    assert main(["reproduce", "fig2", *arguments]) == 2
    captured = capsys.readouterr()
    assert near in captured.err + captured.out


def test_the_scales_of_the_command_are_those_of_the_experiments() -> None:
    assert get_args(get_type_hints(Reproduce)["scale"]) == SCALES
