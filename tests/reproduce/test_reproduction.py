"""The runner and its folder: each cell once, whatever happens in between."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from made_up import Log, noted_experiment

from deepzero.errors import InvalidInputError, NonFiniteLossError, RunFolderError
from deepzero.report import Document
from deepzero.reproduce import Request, find, reproduce
from deepzero.reproduce.cells import Workplace
from deepzero.reproduce.experiment import Experiment

KINDS = {"a": None, "bb": 1000.0, "c, d": 3.0}
ALL = ["a0", "bb0", "c, d0", "a1", "bb1", "c, d1"]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def noted(log: Log) -> Experiment:
    return noted_experiment(log, KINDS)


def contents(folder: Path) -> tuple[Any, ...]:
    """The cells of a reproduction without times."""
    document = Document.from_dict(json.loads((folder / "results.json").read_text()))
    return [(cell["labels"], cell["settings"], cell["result"]) for cell in document.cells], document.tables


def test_every_cell_is_run_once_in_order_and_kept(tmp_path: Path, log: Log, noted: Experiment) -> None:
    done = reproduce(Request(experiment=noted), out=tmp_path / "out")
    assert log.run == ALL
    assert (done.missing, done.stopped, done.folder) == (0, False, tmp_path / "out")
    assert [row[:2] for row in done.document.tables[0].rows] == [[k, str(s)] for s in (0, 1) for k in KINDS]
    before = contents(tmp_path / "out")
    again = reproduce(Request(experiment=noted), out=tmp_path / "out")
    assert log.run == ALL
    assert again.document.tables == done.document.tables
    assert contents(tmp_path / "out") == before


def test_what_is_written(tmp_path: Path, log: Log) -> None:
    done = reproduce(Request(experiment=noted_experiment(log, KINDS, plotted=True), scale="smoke"), out=tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    cells = [f"cells/kind={kind}-seed={seed}.json" for kind in ("a", "bb", "c_d") for seed in (0, 1)]
    assert files == [*cells, "figure-1.svg", "report.html", "reproduction.json", "results.json"]
    values = json.loads((tmp_path / "results.json").read_text())
    document = Document.from_dict(values)
    assert json.loads(json.dumps(document.as_dict())) == values
    assert document.title == "Noted cells"
    assert document.caption == "Made up."
    assert document.facts["cells"] == "6 of 6 finished"
    assert {"experiment", "scale", "date", "versions", "hardware"} <= document.facts.keys()
    assert document.cells[2]["labels"] == {"kind": "c, d", "seed": 0}
    assert document.cells[2]["result"] == {"test_accuracy": 0.5, "folder": "kind=c_d-seed=0"}
    assert {"settings", "date", "versions", "hardware"} <= document.cells[2].keys()
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "Noted cells" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figure-1.svg").read_text().startswith("<svg")
    assert done.document.tables[0].rows[5] == ["c, d", "1", "0.5"]


def test_a_cell_that_was_stopped_is_continued_and_no_finished_one_is_run_again(
    tmp_path: Path, log: Log, noted: Experiment
) -> None:
    log.pause = {"bb0", "c, d1"}
    first = reproduce(Request(experiment=noted), out=tmp_path)
    assert (log.run, first.missing, first.stopped) == (["a0", "bb0"], 5, True)
    assert first.document.facts["cells"] == "1 of 6 finished"
    assert [row[0] for row in first.document.tables[0].rows] == ["a"]
    second = reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run[2:] == ["bb0", "c, d0", "a1", "bb1", "c, d1"]
    assert (second.missing, second.stopped) == (1, True)
    third = reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run[7:] == ["c, d1"]
    assert (third.missing, third.stopped) == (0, False)
    reproduce(Request(experiment=noted), out=tmp_path / "whole")
    assert contents(tmp_path) == contents(tmp_path / "whole")


def test_a_signal_stops_after_the_cell_that_is_being_run(tmp_path: Path, log: Log, noted: Experiment) -> None:
    log.after = lambda name, place: signal.raise_signal(signal.SIGTERM) if name == "bb0" else None
    first = reproduce(Request(experiment=noted), out=tmp_path)
    assert (log.run, first.missing, first.stopped) == (["a0", "bb0"], 4, True)
    assert (tmp_path / "report.html").exists()
    reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ALL


def test_a_time_limit_stops_before_the_first_cell(tmp_path: Path, log: Log, noted: Experiment) -> None:
    first = reproduce(Request(experiment=noted), out=tmp_path, max_seconds=1e-9)
    assert (log.run, first.missing, first.stopped) == ([], 6, True)
    assert (tmp_path / "report.html").exists()
    assert contents(tmp_path)[0] == []
    assert reproduce(Request(experiment=noted), out=tmp_path, max_seconds=1000).missing == 0


def test_a_run_that_fails_leaves_what_was_finished(tmp_path: Path, log: Log, noted: Experiment) -> None:
    def fail(name: str, _: Workplace) -> None:
        if name == "c, d0":
            raise InvalidInputError("too bad")

    log.after = fail
    with pytest.raises(InvalidInputError, match="too bad"):
        reproduce(Request(experiment=noted), out=tmp_path)
    log.after = lambda *_: None
    assert reproduce(Request(experiment=noted), out=tmp_path).missing == 0
    assert log.run == ["a0", "bb0", "c, d0", *ALL[2:]]


def test_finished_cells_are_taken_over_from_results_made_elsewhere(
    tmp_path: Path, log: Log, noted: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    log.pause = {"bb0"}
    reproduce(Request(experiment=noted), out=tmp_path / "there")
    log.run.clear()
    caplog.set_level("INFO", logger="deepzero")
    known = tmp_path / "there" / "results.json"
    done = reproduce(Request(experiment=noted), out=tmp_path / "here", known=known)
    assert log.run == ALL[1:]
    assert "1 cells taken over" in caplog.text
    assert done.missing == 0
    reproduce(Request(experiment=noted), out=tmp_path / "there")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    first = [json.loads((tmp_path / at / "results.json").read_text())["cells"][0] for at in ("here", "there")]
    assert first[0] == first[1]  # date and hardware too


def test_date_versions_and_hardware_are_those_of_the_newest_cell(tmp_path: Path, noted: Experiment) -> None:
    reproduce(Request(experiment=noted), out=tmp_path)
    cell = tmp_path / "cells" / "kind=bb-seed=1.json"
    record = json.loads(cell.read_text())
    record |= {"date": "2999-01-01T00:00:00+00:00", "versions": {"torch": "9"}, "hardware": {"cpu": "abacus"}}
    cell.write_text(json.dumps(record))
    facts = reproduce(Request(experiment=noted), out=tmp_path).document.facts
    assert {name: facts[name] for name in ("date", "versions", "hardware")} == {
        name: record[name] for name in ("date", "versions", "hardware")
    }


def test_results_of_other_settings_are_not_taken_over(tmp_path: Path, log: Log, noted: Experiment) -> None:
    reproduce(Request(experiment=noted), out=tmp_path / "there")
    log.version = 2
    with pytest.raises(RunFolderError, match=r"has no cell of noted at the scale 'small' with these settings"):
        reproduce(Request(experiment=noted), out=tmp_path / "here", known=tmp_path / "there" / "results.json")
    with pytest.raises(RunFolderError, match="cannot be read"):
        reproduce(Request(experiment=noted), out=tmp_path / "new", known=tmp_path / "no.json")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: .*No such file"),
        ("{", "cannot be read"),
        ("[]", "should hold a JSON object"),
        ("{}", "expected results of format 'deepzero results 1', got None"),
    ],
)
def test_known_results_that_are_none_are_refused_before_anything_is_written(
    tmp_path: Path, noted: Experiment, content: str | None, expected: str
) -> None:
    known = tmp_path / "known.json"
    if content is not None:
        known.write_text(content)
    with pytest.raises(RunFolderError, match=f"{expected}.*; known takes a results.json that deepzero reproduce wrote"):
        reproduce(Request(experiment=noted), out=tmp_path / "new", known=known)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_shares_together_are_the_whole_and_each_cell_is_in_one(
    tmp_path: Path, log: Log, noted: Experiment, n: int
) -> None:
    missing = []
    for k in range(1, n + 1):
        done = reproduce(Request(experiment=noted, share=(k, n)), out=tmp_path / "shares")
        assert not done.stopped
        missing.append(done.missing)
    assert sorted(log.run) == sorted(ALL)
    assert log.run[: -(-6 // n)] == ALL[::n]
    assert missing == sorted(missing, reverse=True)
    assert missing[-1] == 0
    reproduce(Request(experiment=noted), out=tmp_path / "whole")
    assert contents(tmp_path / "shares") == contents(tmp_path / "whole")


def test_a_cell_that_another_process_runs_is_refused_by_name_and_others_are_not(
    tmp_path: Path, log: Log, noted: Experiment
) -> None:
    refused: list[str] = []

    def second(name: str, _place: Workplace) -> None:
        if name == "a0":
            for share in ((1, 1), (1, 2), (1, 3)):
                with pytest.raises(RunFolderError) as error:
                    reproduce(Request(experiment=noted, share=share), out=tmp_path)
                refused.append(str(error.value))
            reproduce(Request(experiment=noted, share=(2, 2)), out=tmp_path)

    log.after = second
    reproduce(Request(experiment=noted, share=(1, 2)), out=tmp_path)
    assert log.run == ["a0", "bb0", "a1", "c, d1", "c, d0", "bb1"]
    assert refused[0].startswith(f"the cell kind=a-seed=0 of {tmp_path} is in use by this process itself, process ")
    assert refused[0].endswith("to divide the cells of a reproduction among processes, give each a --share of its own")
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("share", [(0, 2), (3, 2), (1, 0), (-1, -1)])
def test_a_share_that_is_none(noted: Experiment, share: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="try 1/2 and 2/2 in two processes"):
        Request(experiment=noted, share=share)


def test_only_some_labels(tmp_path: Path, log: Log, noted: Experiment) -> None:
    done = reproduce(Request(experiment=noted, only={"kind": "c, d"}), out=tmp_path)
    assert log.run == ["c, d0", "c, d1"]
    assert (done.missing, done.document.facts["cells"]) == (0, "2 of 6 finished")
    done = reproduce(Request(experiment=noted, only={"seed": "1", "kind": "a"}), out=tmp_path)
    assert (log.run[2:], len(done.document.cells)) == (["a1"], 3)
    with pytest.raises(InvalidInputError, match=r"no cell of noted .* there are: kind: a, bb, c, d; seed: 0, 1$"):
        reproduce(Request(experiment=noted, only={"kind": "a", "sed": "None"}), out=tmp_path)


def test_labels_that_only_some_cells_have_are_named_too() -> None:
    with pytest.raises(InvalidInputError, match=r"d: 406; method: errors, FO, CGE, .*; seed: 0$"):
        Request(experiment=find("fig2"), scale="smoke", only={"seed": "None"}).cells()


def test_seeds_replace_those_of_the_scale_and_can_be_added_later(tmp_path: Path, log: Log, noted: Experiment) -> None:
    one = reproduce(Request(experiment=noted, seeds=1), out=tmp_path)
    assert (len(one.document.cells), one.missing) == (3, 0)
    assert one.document.caption == "Made up. Changed here: seeds 1."
    two = reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ALL
    assert two.document.caption == "Made up."


@pytest.mark.parametrize("change", [{"epochs": 3}, {"limit": 7}, {"scale": "smoke"}])
def test_a_folder_of_another_reproduction_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    reproduce(Request(experiment=find("fig2"), scale="paper"), **stopped(tmp_path))
    with pytest.raises(
        RunFolderError, match=r"holds another reproduction \(.* there, .* asked\); choose another --out"
    ):
        reproduce(Request(**{"experiment": find("fig2"), "scale": "paper", **change}), **stopped(tmp_path))


def stopped(folder: Path) -> dict[str, Path | float]:
    return {"out": folder, "max_seconds": 1e-9}


def test_another_experiment_in_the_same_folder_is_refused(tmp_path: Path, noted: Experiment) -> None:
    reproduce(Request(experiment=noted), out=tmp_path)
    with pytest.raises(RunFolderError, match="experiment: 'noted' there, 'fig2' asked"):
        reproduce(Request(experiment=find("fig2")), **stopped(tmp_path))


def test_a_folder_or_a_file_that_holds_something_else_is_refused_and_left_alone(
    tmp_path: Path, log: Log, noted: Experiment
) -> None:
    (tmp_path / "thesis.txt").write_text("text")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunFolderError, match="is not an empty folder; choose another --out"):
            reproduce(Request(experiment=noted), out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert log.run == []


def test_a_folder_that_another_process_has_just_begun_is_taken(tmp_path: Path, noted: Experiment) -> None:
    (tmp_path / ".reproduction.json.tmp").write_bytes(b"{")
    assert reproduce(Request(experiment=noted), out=tmp_path).missing == 0


def test_a_cell_of_other_settings_is_refused_before_anything_is_run(
    tmp_path: Path, log: Log, noted: Experiment
) -> None:
    log.pause = {"bb0"}
    reproduce(Request(experiment=noted), out=tmp_path)
    log.version = 2
    expected = r"kind=a-seed=0\.json was run with other settings.*choose another --out, or delete the file to run"
    with pytest.raises(RunFolderError, match=expected):
        reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ["a0", "bb0"]
    (tmp_path / "cells" / "kind=a-seed=0.json").unlink()
    assert reproduce(Request(experiment=noted), out=tmp_path).missing == 0
    assert log.run[2:] == ALL


@pytest.mark.parametrize("damage", [b"", b'{"labels": {', b"[1]", b"\xff\xfe"])
def test_a_damaged_cell_is_refused_with_what_to_do(tmp_path: Path, log: Log, noted: Experiment, damage: bytes) -> None:
    log.pause = {"bb0"}
    reproduce(Request(experiment=noted), out=tmp_path)
    cell = tmp_path / "cells" / "kind=a-seed=0.json"
    cell.write_bytes(damage)
    with pytest.raises(RunFolderError, match=r"kind=a-seed=0\.json .*; delete it to run the cell again"):
        reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ["a0", "bb0"]
    cell.unlink()
    assert reproduce(Request(experiment=noted), out=tmp_path).missing == 0


def test_a_damaged_record_is_refused_with_what_to_do(tmp_path: Path, noted: Experiment) -> None:
    reproduce(Request(experiment=noted), out=tmp_path)
    (tmp_path / "reproduction.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"cannot be read: .*; choose another --out"):
        reproduce(Request(experiment=noted), out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"device": "tpu"}, "device must be cpu"),
        ({"max_seconds": 0.0}, "max_seconds must be a finite number above 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, noted: Experiment, arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        reproduce(Request(experiment=noted), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["epochs", "seeds", "limit"])
def test_changes_are_counts(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} must be an integer of at least 1, got 0"):
        Request(experiment=find("fig2"), **{name: 0})


@pytest.mark.parametrize(
    ("name", "change"),
    [("fig3", "epochs"), ("tabA1", "seeds"), ("figA6", "limit"), ("fig5", "limit"), ("fig6", "epochs")],
)
def test_a_change_that_changes_nothing_is_refused(name: str, change: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} at the scale 'small' does not depend on {change}; leave"):
        Request(experiment=find(name), **{change: 17})


def test_a_change_to_what_the_scale_has_is_none() -> None:
    request = Request(experiment=find("fig2"), epochs=8, seeds=3)
    assert request.size == find("fig2").scale("small")


def test_forecasts_are_made_once_and_kept_at_the_paper_scale(
    tmp_path: Path, log: Log, noted: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="deepzero")
    log.pause = {"bb0"}
    reproduce(Request(experiment=noted, scale="paper"), out=tmp_path)
    assert log.forecast == ["a0", "bb0", "c, d0"]  # one for each kind
    kept = json.loads((tmp_path / "forecasts.json").read_text())
    assert kept == {"kind=a": None, "kind=bb": 1000.0, "kind=c, d": 3.0}
    assert "kind=a: short each" in caplog.text
    assert "kind=bb: 16.7 min each" in caplog.text
    assert "6 cells are left, about 33.4 min of work" in caplog.text
    caplog.clear()
    reproduce(Request(experiment=noted, scale="paper"), out=tmp_path)
    assert len(log.forecast) == 3
    assert "5 cells are left" in caplog.text
    assert "each" not in caplog.text


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_no_forecasts_at_other_scales(tmp_path: Path, log: Log, noted: Experiment, scale: str) -> None:
    reproduce(Request(experiment=noted, scale=scale), out=tmp_path)
    assert log.forecast == []
    assert not (tmp_path / "forecasts.json").exists()


def test_no_forecast_is_begun_after_a_stop(tmp_path: Path, log: Log, noted: Experiment) -> None:
    assert reproduce(Request(experiment=noted, scale="paper"), **stopped(tmp_path)).stopped
    assert log.forecast == []


def test_progress_is_told(tmp_path: Path, noted: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="deepzero")
    reproduce(Request(experiment=noted), out=tmp_path)
    assert "[3/6] kind=c_d-seed=0: test accuracy 50.00%, " in caplog.text


def test_a_run_that_diverged_is_kept_as_such_and_left_out_of_the_means(
    tmp_path: Path, log: Log, noted: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    def diverge(name: str, _: Workplace) -> None:
        if name == "bb0":
            raise NonFiniteLossError("training stopped at step 3")

    log.after = diverge
    with caplog.at_level("INFO", logger="deepzero"):
        done = reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ALL
    assert (done.missing, done.stopped) == (0, False)
    assert done.document.facts["diverged"] == ["kind=bb-seed=0"]
    assert len(done.document.tables[0].rows) == 5
    assert done.document.cells[1]["result"] == {"diverged": "training stopped at step 3"}
    assert "kind=bb-seed=0: diverged" in caplog.text
    reproduce(Request(experiment=noted), out=tmp_path)
    assert log.run == ALL


def test_a_number_that_is_not_finite_counts_as_divergence(
    tmp_path: Path, log: Log, noted: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("made_up.Noted.run", lambda work, *_: {"test_accuracy": 0.5, "curve": [1.0, float("nan")]})
    done = reproduce(Request(experiment=noted), out=tmp_path)
    assert len(done.document.facts["diverged"]) == 6
    assert done.document.tables[0].rows == []


def test_the_document_says_by_what_command_it_was_made(tmp_path: Path, noted: Experiment) -> None:
    assert "command" not in reproduce(Request(experiment=noted), out=tmp_path / "a").document.facts
    done = reproduce(Request(experiment=noted), out=tmp_path / "b", command="deepzero reproduce noted")
    assert done.document.facts["command"] == "deepzero reproduce noted"
