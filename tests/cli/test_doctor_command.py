import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepzero.cli import main

TINY = ["--limit", "64", "--batch-size", "16", "--sparsity", "0", "--seconds", "0.2"]


OWN = """
import numpy as np
import torch
import torch.nn.functional as F
import deepzero as dz
from deepzero.recipes import customize, find
from deepzero.training import Trainer

def loss(x):
    return float(np.sum((x - 1.0) ** 2))

def box(size: int = 4):
    return dz.BlackBox(loss, np.zeros(size))

def pair():
    return loss, np.zeros(3)

def noisy():
    rng = np.random.default_rng(0)
    return dz.BlackBox(lambda x: loss(x) + 3e-3 * rng.normal(), np.zeros(4))

def estimator():
    model = torch.nn.Linear(3, 2)
    x = torch.ones(8, 3)
    return dz.CGE(model, loss=F.cross_entropy, step_size=1e-4), x, torch.zeros(8, dtype=torch.long)

def trainer():
    model = torch.nn.Linear(3, 2)
    data = [(torch.ones(8, 3), torch.zeros(8, dtype=torch.long))] * 5
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, dz.CGE(model, loss=F.cross_entropy, step_size=1e-4), sgd, data, epochs=3)

def recipe(batch: int = 16):
    return customize(find("digits").config(), limit=64, batch_size=batch, sparsity=0.0)

def bad():
    return 3

def broken():
    return dz.BlackBox(lambda x: 1 / 0, np.zeros(3))
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_things.py").write_text(OWN)
    yield
    sys.modules.pop("own_things", None)


def test_the_doctor_examines_digits_and_writes_report_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *TINY]) == 0
    out = capsys.readouterr().out
    assert out.index("verdict: fit to train: deterministic") < out.index("Objective")
    for part in ("deterministic", "recommended", "cosine", "4,955 queries", "Advice", "runs/digits-doctor"):
        assert part in out
    record = json.loads((tmp_path / "runs" / "digits-doctor" / "diagnosis.json").read_text())
    assert record["diagnosis"]["step"]["configured"] == 5e-3
    assert (tmp_path / "runs" / "digits-doctor" / "sweep.png").stat().st_size > 1000


def test_settings_reach_the_examination(tmp_path: Path) -> None:
    assert main(["doctor", *TINY, "--estimator", "rge", "--queries", "4", "--step-size", "1e-3", "--out", "here"]) == 0
    record = json.loads((tmp_path / "here" / "diagnosis.json").read_text())
    assert record["diagnosis"]["forecast"]["queries"] == 5
    assert record["diagnosis"]["step"]["configured"] == 1e-3


def test_a_doctors_folder_does_not_stand_in_the_way_of_a_run_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *TINY, "--estimator", "rge", "--queries", "4"]) == 0
    assert main(["train", "--resume"]) == 2
    assert "there is no unfinished run in runs" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *TINY, "--step-size", "1e19"]) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digit"], "unknown recipe 'digit' (did you mean digits?)"),
        (["--step-size", "0"], "--step-size must be a finite number above 0, got 0.0"),
        (["--sparsity", "1"], "sparsity must lie in [0, 1), got 1.0"),
        (["--seconds", "0", "--sparsity", "0"], "--seconds must be a finite number above 0"),
        (["--depth", "3"], "this recipe's model has no depth"),
        (["--device", "tpu"], "device must be cpu, cuda"),
        (["cifar10-cnn", "--data-dir", "nowhere"], "CIFAR-10"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(["doctor", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert not (tmp_path / "runs").exists()


def test_a_black_box_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["own_things.py:box", "--set", "size=6", "--price-per-query", "0.5", "--run-steps", "10"]
    assert main(["doctor", *words]) == 0
    out = capsys.readouterr().out
    assert "the doctor asks the black box at most 128 times" in out
    assert out.index("the doctor asks") < out.index("verdict: fit to train: deterministic")
    record = json.loads((tmp_path / "runs" / "own_things-doctor" / "diagnosis.json").read_text())
    assert record["diagnosis"]["run"]["price"] == 10 * 7 * 0.5
    assert record["config"]["own"] == "own_things.py:box"
    assert record["config"]["set"] == {"size": "6"}
    assert (tmp_path / "runs" / "own_things-doctor" / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "queries"),
    [
        (["own_things.py:pair"], 4),
        (["own_things:box"], 5),
        (["own_things.py:pair", "--estimator", "rge", "--queries", "8", "--step-size", "1e-3"], 9),
        (["own_things.py:estimator"], 9),
        (["own_things.py:trainer", "--seconds", "0.2"], 9),
        (["own_things.py", "--seconds", "0.2", "--set", "batch=8"], 4955),
    ],
)
def test_whatever_can_be_estimated_can_be_examined(tmp_path: Path, words: list[str], queries: int) -> None:
    assert main(["doctor", *words, "--out", "here"]) == 0
    record = json.loads((tmp_path / "here" / "diagnosis.json").read_text())
    assert record["diagnosis"]["forecast"]["queries"] == queries


def test_a_trainer_is_forecast_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "own_things.py:trainer", "--seconds", "0.2"]) == 0
    assert "for 3 epochs" in capsys.readouterr().out.split("Objective")[0].replace("\n", " ")


def test_what_is_not_fit_is_exit_code_1_and_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "own_things.py:noisy"]) == 1
    assert "verdict: not fit: the loss is noisy (sd 3e-03): raise the step to" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [(["own_things.py:box"], 0), (["own_things.py:noisy"], 1), (TINY, 0)])
def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> None:
    assert main(["doctor", *words, "--json"]) == code
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert record["healthy"] == (code == 0)
    assert record["verdict"].startswith("fit" if code == 0 else "not fit")
    assert record["diagnosis"]["verdict"] == record["verdict"]
    assert "report and plot: " in captured.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["own_things.py:bax"], "own_things.py has no 'bax' (did you mean box?)"),
        (["own_thing.py:box"], "own_thing.py does not exist (did you mean own_things.py?)"),
        (
            ["own_things.py:bad"],
            "own_things.py:bad must return a dz.BlackBox, a function with the array it starts from",
        ),
        (["own_things.py:bad"], "it returns a int"),
        (["own_things.py:loss"], "loss needs x; add --set x=VALUE"),
        (["own_things.py:broken"], "the black box fails at query 1 (at the parameters as they are): ZeroDivisionError"),
        (["own_things.py:box", "--set", "sise=3"], "box has no parameter 'sise' (did you mean size?)"),
        (["own_things.py:box", "--set", "size=x"], "--set size takes a whole number, got 'x'"),
        (["own_things.py:box", "--epochs", "3", "--depth", "2"], "--epochs, --depth has no effect on a black box"),
        (["own_things.py:box", "--queries", "3"], "--queries has no effect without --estimator rge"),
        (["own_things.py:box", "--data-dir", "x"], "--data-dir has no effect on a black box; leave it out"),
        (["own_things.py:box", "--max-queries", "5"], "max_queries must be an integer of at least 64, got 5"),
        (["own_things.py:box", "--budget", "50", "--run-steps", "5"], "give run_steps or budget, not both"),
        (
            ["own_things.py:estimator", "--step-size", "1"],
            "--step-size has no effect on an estimator, which has its own",
        ),
        (["own_things.py:trainer", "--learning-rate", "1"], "--learning-rate has no effect on a trainer"),
        (["own_things.py:recipe", "--budget", "9"], "--budget has no effect on a recipe"),
        (["digits", "--set", "a=1"], "--set has no effect on a recipe"),
        (["digits", "--price-per-query", "1"], "--price-per-query has no effect on a recipe"),
    ],
)
def test_mistakes_with_things_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["doctor", *words]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", *TINY, "--out", "file"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_words_that_are_no_option_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--estimator", "fo"]) == 2
    captured = capsys.readouterr()
    assert "cge" in captured.err + captured.out
