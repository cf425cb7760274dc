import functools
import json
import signal
from pathlib import Path
from typing import Any, get_args

import pytest

from deepzero.cli import main
from deepzero.cli.bench import CaseName
from deepzero.measure import CASES, Settings, bench_record
from deepzero.measure.bench_record import case_record

TINY = ["--batch", "4", "--threads", "1", "--rounds", "1", "--seconds-per-side", "0.02", "--no-memory"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_bench_from_start_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/deepzero", "bench", "digits"])
    assert main(["bench", "digits", *TINY, "--out", "bench.json"]) == 0
    out = capsys.readouterr().out
    for word in ("best plain loop", "loop with block reuse", "queries/s", "share of time", "conv2d", "features.0-3"):
        assert word in out
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["command"] == "deepzero bench digits"
    assert set(record["environment"]["versions"]) == {"python", "torch", "deepzero", "numba", "numpy"}
    assert record["environment"]["threads"] == 1
    assert {"cpu", "cores", "platform", "load_average_before"} <= set(record["environment"])
    assert record["cases"][0]["ratios"].keys() == {"deepzero/naive", "deepzero/block_reuse"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch", "1"], "batch must be an integer of at least 2, got 1"),
        (["--sparsity", "1"], "sparsity must lie in [0, 1), got 1.0"),
        (["--step-size", "-1"], "--step-size must be a finite number above 0, got -1.0"),
        (["--rounds", "0"], "rounds must be an integer of at least 1, got 0"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--seconds-per-side", "nan"], "--seconds-per-side must be a finite number above 0, got nan"),
        (["--budget-mib", "0"], "--budget-mib must be an integer of at least 1, got 0"),
        (["--out", "nowhere/bench.json"], "--out must be a file in a folder that exists, got nowhere/bench.json"),
        (["--out", "."], "--out must be a file in a folder that exists, got ."),
        (["--plot", "."], "--plot must be a file in a folder that exists, got .; try --plot bench.svg"),
        (["--seconds", "0"], "--seconds must be a finite number above 0, got 0.0"),
        (["--resume"], "--resume goes on with a record; say with --out which"),
        (["--cases", "digits", "mlp"], "--cases goes with all, got cnn; type deepzero bench all --cases ..."),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["bench", "cnn", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err


def test_all_cases_are_checked_before_the_first_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "all", "--batch", "5000"]) == 2
    captured = capsys.readouterr()
    assert "too few for --batch 5000" in captured.err
    assert "measuring" not in captured.out


def test_an_unknown_case_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "vgg"]) == 2
    captured = capsys.readouterr()
    assert "resnet20" in captured.err + captured.out


def test_some_of_all_with_growth_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is gone on with: nothing is measured again, the table and the drawings are made of it all the same."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr("deepzero.measure.cost_curves.planned_points", lambda _: iter(()))
    monkeypatch.setattr("deepzero.measure.bench_record.planned_points", lambda _: iter(()))
    words = ["bench", "all", *TINY, "--cases", "digits", "--growth", "--out", "bench.json", "--plot", "bench.svg"]
    assert main(words) == 0
    record = json.loads((tmp_path / "bench.json").read_text())
    assert [case["case"] for case in record["cases"]] == ["digits"]
    point = {"curve": "batch", "network": "cnn", "setup_seconds": 1.0, "seconds_per_query": 1e-3}
    spread = {"median": 10.0, "min": 9.0, "max": 11.0, "rounds": [10.0]}
    record["growth"] = [{**point, "at": at, "ratio": spread} for at in (32, 128)]
    (tmp_path / "bench.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    out = capsys.readouterr().out
    for word in ("speed, median", "growth of the cost of a query", "10.0x (9.0 to 11.0)", "bench-growth.svg"):
        assert word in out
    assert "where the time of deepzero goes" not in out
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "bench.json").read_text())["cases"] == record["cases"]


def test_a_signal_ends_it_after_the_case_and_resume_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first case is written there is nothing to finish: an interrupt acts at once."""
    words = ["bench", "all", *TINY, "--cases", "digits", "mlp", "transformer-block", "--out", "bench.json"]
    measured: list[str] = []
    made = functools.cache(bench_record.run)

    def interrupted(name: str, settings: Settings) -> Any:
        measured.append(name)
        if len(measured) in stops:
            signal.raise_signal(signal.SIGINT)
        return made("digits", settings)  # the quickest, and once for all

    monkeypatch.setattr(bench_record, "run", interrupted)
    monkeypatch.setattr(bench_record, "case_record", lambda report: {**case_record(report), "case": measured[-1]})
    stops = [1]
    assert main(words) == 130
    assert not Path("bench.json").exists()
    stops = [3]
    assert main(words) == 75
    told = capsys.readouterr().out
    assert "SIGINT: finishing this case, then saving; press Ctrl-C again to stop now" in told
    assert "stopped by SIGINT; --resume goes on with bench.json" in told
    assert main([*words, "--resume"]) == 0
    assert measured == ["digits", "digits", "mlp", "transformer-block"]
    assert [case["case"] for case in json.loads(Path("bench.json").read_text())["cases"]] == measured[1:]


def test_the_words_of_the_command_are_the_cases() -> None:
    assert set(get_args(CaseName)) == set(CASES)
