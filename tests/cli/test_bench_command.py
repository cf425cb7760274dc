import json
from pathlib import Path

import pytest

from deepzero.cli import main

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
    for word in ("naive loop", "loop with block reuse", "queries/s", "share of time", "conv2d", "features.0-3"):
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
