import json

import pytest

from deepzero.cli import main

TINY = ["--limit", "64", "--batch-size", "16", "--sparsity", "0", "--seconds", "0.2"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_doctor_examines_digits_and_writes_report_and_plot(tmp_path, capsys):
    assert main(["doctor", *TINY]) == 0
    out = capsys.readouterr().out
    for part in ("deterministic", "recommended", "cosine", "4,955 queries", "Advice", "runs/digits-doctor"):
        assert part in out
    record = json.loads((tmp_path / "runs" / "digits-doctor" / "diagnosis.json").read_text())
    assert record["diagnosis"]["step"]["configured"] == 5e-3
    assert (tmp_path / "runs" / "digits-doctor" / "sweep.png").stat().st_size > 1000


def test_settings_reach_the_examination(tmp_path):
    assert main(["doctor", *TINY, "--estimator", "rge", "--queries", "4", "--step-size", "1e-3", "--out", "here"]) == 0
    record = json.loads((tmp_path / "here" / "diagnosis.json").read_text())
    assert record["diagnosis"]["forecast"]["queries"] == 5
    assert record["diagnosis"]["step"]["configured"] == 1e-3


def test_a_doctors_folder_does_not_stand_in_the_way_of_a_run_to_resume(capsys):
    assert main(["doctor", *TINY, "--estimator", "rge", "--queries", "4"]) == 0
    assert main(["train", "--resume"]) == 2
    assert "there is no unfinished run in runs" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_exit_code_1(capsys):
    assert main(["doctor", *TINY, "--step-size", "1e19"]) == 1
    assert "error: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digit"], "unknown recipe 'digit' (did you mean digits?)"),
        (["--step-size", "0"], "step_size must be a finite number above 0, got 0.0"),
        (["--sparsity", "1"], "sparsity must lie in [0, 1), got 1.0"),
        (["--seconds", "0", "--sparsity", "0"], "seconds must be a finite number above 0"),
        (["--depth", "3"], "this recipe's model has no depth"),
        (["--device", "tpu"], "device must be cpu, cuda"),
        (["cifar10-cnn", "--data-dir", "nowhere"], "CIFAR-10"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, capsys, arguments, expected):
    assert main(["doctor", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert expected in err
    assert not (tmp_path / "runs").exists()


def test_an_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["doctor", *TINY, "--out", "file"]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_words_that_are_no_option_name_what_there_is(capsys):
    assert main(["doctor", "--estimator", "fo"]) == 2
    captured = capsys.readouterr()
    assert "cge" in captured.err + captured.out
