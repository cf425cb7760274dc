"""``--quiet`` and ``--json``: who is told what, and where."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from deepzero.cli import main
from deepzero.cli.command import Output, tell_stopped
from deepzero.cli.entry_point import COMMANDS
from deepzero.cli.options import Json, Quiet
from deepzero.errors import InvalidInputError

pytestmark = pytest.mark.filterwarnings("default:a warning")

TINY = ["--estimator", "fo", "--sparsity", "0", "--limit", "64", "--batch-size", "32", "--epochs", "1"]


@dataclass(frozen=True)
class Talking:
    """Says something at every level."""

    fails: bool = False
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Say it."""
        output.console.print("progress")
        logging.getLogger("deepzero").info("a phase")
        warnings.warn("a warning", stacklevel=1)
        if self.fails:
            raise InvalidInputError("a mistake")
        output.result("[b] result", loss=float("nan"), folder=Path("runs/a"))
        return 0


@pytest.fixture(autouse=True)
def _talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "talk", Talking)


def test_a_person_is_told_everything_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk"]) == 0
    shown = capsys.readouterr()
    assert [line.strip() for line in shown.out.splitlines()] == [
        "progress",
        "a phase",
        "warning: a warning",
        "[b] result",
    ]
    assert shown.err == ""


def test_quiet_leaves_the_result_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "[b] result\n"
    assert shown.err.strip() == "warning: a warning"


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"loss": None, "folder": "runs/a"}
    assert shown.out.count("\n") == 1
    assert [line.strip() for line in shown.err.splitlines()] == ["progress", "a phase", "warning: a warning"]
    assert main(["talk", "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["folder"] == "runs/a"
    assert shown.err.strip() == "warning: a warning"


@pytest.mark.parametrize(("words", "message"), [(["--fails"], "a mistake"), (["--fials"], "no option --fials")])
def test_an_error_is_told_to_both(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", *words, "--quiet", "--json"]) == 2
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["exit_code"] == 2
    assert message in told["error"]
    assert message in shown.err


def test_every_command_has_both() -> None:
    for name, command in COMMANDS.items():
        assert {"quiet", "json"} <= {field.name for field in fields(command)}, name  # type: ignore[arg-type]


def test_a_stopped_run_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell_stopped(Output.of(quiet=False, as_json=True), "train", Path("runs/my run"), "SIGINT") == 75
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "folder": "runs/my run",
        "stopped": "SIGINT",
        "resume": "deepzero train --resume --out 'runs/my run'",
    }


def test_results_of_real_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == "run"
    assert told["stopped"] is None
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["summary"] == {key: value for key, value in written.items() if key != "sha256"}
    assert main(["report", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": "run/report.html"}
    assert main(["report", "run", "--quiet"]) == 0
    assert capsys.readouterr().out == "report: run/report.html\n"
    assert main(["recipes", "--json"]) == 0
    assert "digits" in {recipe["name"] for recipe in json.loads(capsys.readouterr().out)["train"]}
    assert main(["reproduce", "--json"]) == 0
    assert "fig2" in {experiment["name"] for experiment in json.loads(capsys.readouterr().out)["experiments"]}
