import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import Any

import pytest

from deepzero.cli import main
from deepzero.training import read_metrics

TINY = ["--estimator", "fo", "--sparsity", "0", "--limit", "64", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_from_start_to_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "digits-fo-seed0" in out
    summary = json.loads((tmp_path / "runs" / "digits-fo-seed0" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["config"]["model"]["name"] == "digits_cnn"


@pytest.mark.filterwarnings("default::deepzero.sparsity.SparsityWarning")
def test_the_whole_pipeline_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--epochs", "1", "--limit", "64", "--sparsity", "0.99", "--out", "run"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["config"]["estimator"]["method"] == "cge"
    assert summary["queries_for_ratios"] == 2 * 193
    out = capsys.readouterr().out
    assert "warning: features.4.weight would be left without a coordinate" in out
    assert "test accuracy" in out


def test_stop_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--epochs", "2", "--out", "run", "--max-minutes", "1e-9"]) == 75
    out = capsys.readouterr().out
    assert "everything is saved in run" in out
    assert "deepzero train --resume --out run" in out
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "digit"], "unknown recipe 'digit' (did you mean digits?)"),
        (["train", "--step-size", "0"], "--step-size must be a finite number above 0, got 0.0"),
        (["train", "--step-size", "-0.005"], "--step-size must be a finite number above 0, got -0.005"),
        (["train", "--step-size", "nan"], "--step-size must be a finite number above 0, got nan"),
        (["train", "--sparsity", "1"], "sparsity must lie in [0, 1), got 1.0"),
        (["train", "--sparsity", "-0.1"], "sparsity must lie in [0, 1), got -0.1"),
        (["train", "--sparsity", "nan"], "sparsity must lie in [0, 1), got nan"),
        (["train", "--epochs", "0"], "epochs must be an integer of at least 1"),
        (["train", "--depth", "3"], "this recipe's model has no depth"),
        (["train", "--device", "tpu"], "device must be cpu, cuda"),
        (["train", "--max-minutes", "0"], "--max-minutes must be a finite number above 0"),
        (["train", "--limit", "8"], "batch"),
        (["train", "--resume"], "there is no unfinished run in runs"),
        (["train", "--resume", "--out", "none"], "none holds no run, because there is no such folder"),
        (["train", "cifar10-cnn", "--data-dir", "nowhere"], "CIFAR-10"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--estimator", "ceg"], "cge"),
        (["train", "--epochs", "many"], "--epochs"),
        (["trian"], "train"),
    ],
)
def test_words_that_are_no_command_name_what_there_is(
    capsys: pytest.CaptureFixture[str], arguments: list[str], near: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert near in captured.err + captured.out


def test_an_output_folder_that_holds_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--epochs", "1", "--out", "run"]) == 0
    assert main(["train", *TINY, "--epochs", "1", "--out", "run"]) == 2
    assert "continue that with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", "run", "--epochs", "9"]) == 2
    assert "training.epochs: 1 there, 9 asked" in capsys.readouterr().err


def test_a_diverging_run_is_exit_code_1_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--epochs", "2", "--learning-rate", "1e38", "--out", "run"]) == 1
    err = capsys.readouterr().err
    assert "last good checkpoint is run/checkpoints/" in err
    assert "deepzero doctor" in err
    assert "Traceback" not in err


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in ("digits", "digits-dense", "fashion-mnist-cnn", "cifar10-cnn", "cifar10-resnet20"):
        assert name in out


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "--step-size" in capsys.readouterr().out


def test_logging_and_warnings_are_as_before() -> None:
    log = logging.getLogger("deepzero")
    before = (list(log.handlers), log.level, warnings.showwarning)
    main(["recipes"])
    assert (list(log.handlers), log.level, warnings.showwarning) == before


def wait_for(path: Path, lines: int, process: Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_undisturbed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one is frozen while this process tries, so that it is sure to meet it."""
    metrics, environment = tmp_path / "run" / "metrics.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deepzero", "train", *TINY, "--epochs", "40", "--out", "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as first:
        try:
            wait_for(metrics, 3, first)
            first.send_signal(signal.SIGSTOP)
            before = {path.name for path in (tmp_path / "run").iterdir()}
            assert "summary.json" not in before
            holder = f"error: run is in use by process {first.pid} on {socket.gethostname()} since "
            for words in (command[3:], ["train", "--resume", "--out", "run"]):
                assert main(words) == 2
                refusal = capsys.readouterr().err
                assert refusal.startswith(holder)
                assert refusal.rstrip().endswith("or choose another --out")
            assert {path.name for path in (tmp_path / "run").iterdir()} == before
            first.send_signal(signal.SIGCONT)
            assert first.communicate(timeout=120)[1] == ""
        finally:
            first.kill()
    assert main([*command[3:-1], "alone"]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "alone")]
    assert weights[0] == weights[1]
    records = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in read_metrics(path)]
        for path in (metrics, tmp_path / "alone" / "metrics.jsonl")
    ]
    assert records[0] == records[1]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_saves_and_resumes(tmp_path: Path, number: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = [sys.executable, "-m", "deepzero", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*command, *TINY, "--epochs", "100000", "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_for(metrics, 3, first)
    first.send_signal(number)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert f"stopped by {number.name}" in out
    assert "deepzero train --resume --out run" in out
    assert err == ""
    reached = read_metrics(metrics)[-1]["step"]
    # Time passes with the steps: a limit of a minute is two of them, however long the start takes.
    begun = metrics.read_bytes().count(b"\n")
    clock = SimpleNamespace(monotonic=lambda: 30.0 * (metrics.read_bytes().count(b"\n") - begun))
    monkeypatch.setattr("deepzero.training.stop_request.time", clock)
    assert main(["train", "--resume", "--out", "run", "--max-minutes", "1"]) == 75
    steps = [record["step"] for record in read_metrics(metrics) if record["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > reached
