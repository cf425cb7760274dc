"""Ordinary mistakes at the command line: every answer names the word, what was expected, and what was probably aliases."""

from __future__ import annotations

import pytest

import deepzero
from deepzero.cli import aliases, main
from deepzero.cli.entry_point import COMMANDS
from deepzero.cli.signature import arguments_of, options_of, usage
from deepzero.cli.words import check, in_options
from deepzero.errors import InvalidInputError

MISTAKES = {
    "trian": r"unknown command 'trian' \(did you mean train\?\); there are: train, predict",
    "reproduction": r"unknown command 'reproduction' \(did you mean reproduce\?\)",
    "xyz": r"unknown command 'xyz'; there are",
    "--verbose": r"unknown option '--verbose'",
    "train --lr 0.1": r"deepzero train has no option --lr \(did you mean --learning-rate\?\)",
    "train --gpu 0": r"no option --gpu \(did you mean --device\?\)",
    "train --output runs/a": r"no option --output \(did you mean --out\?\)",
    "train --epoch 3": r"no option --epoch \(did you mean --epochs\?\)",
    "train --resme": r"no option --resme \(did you mean --resume\?\)",
    "train --batchsize 3": r"no option --batchsize \(did you mean --batch-size\?\)",
    "train --whatever": r"deepzero train has no option --whatever; there are: --config, ",
    "defend --max-queries 10": r"no option --max-queries \(did you mean --budget\?\)",
    "correct --iterations 10": r"no option --iterations \(did you mean --steps\?\)",
    "train --learning-rate abc": r"--learning-rate takes a number, got 'abc'",
    "train --learning-rate=abc": r"--learning-rate takes a number, got 'abc'",
    "train --learning_rate abc": r"--learning-rate takes a number, got 'abc'",
    "train --epochs 2.5": r"--epochs takes a whole number, got '2.5'",
    "train --estimator cga": r"--estimator takes one of cge, rge, fo, got 'cga' \(did you mean cge\?\)",
    "train --out": r"--out needs a value; see `deepzero train --help`",
    "train --seed --resume": r"--seed needs a value",
    "certify run --radii 0 0.1 a": r"--radii takes a number, got 'a'",
    "reproduce fig2 --only d=730 method=CGE --seeds x": r"--seeds takes a whole number, got 'x'",
    "reproduce fig2 --scale tiny": r"--scale takes one of smoke, small, paper, got 'tiny'",
}
GOOD = (
    "",
    "--help",
    "train --help --nonsense",
    "train digits --epochs 3 --learning-rate -0.5 --resume",
    "train --max_minutes=1e-3 --logger tensorboard",
    "reproduce fig2 --only d=730 method=CGE --share 1/2",
    "certify runs/a --radii 0 0.25 --trials 100",
    "report a b --out page.html",
)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named(line: str) -> None:
    with pytest.raises(InvalidInputError, match=MISTAKES[line]):
        check(line.split(), COMMANDS)


@pytest.mark.parametrize("line", GOOD)
def test_what_is_right_passes(line: str) -> None:
    check(line.split(), COMMANDS)


def test_mistakes_end_with_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--lr", "0.1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: deepzero train has no option --lr (did you mean --learning-rate?)")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out == f"deepzero {deepzero.__version__}\n" * 2
    assert main([]) == 0
    assert "train" in capsys.readouterr().out


def test_suggestions_lead_to_what_there_is() -> None:
    options = {option.name for command in COMMANDS.values() for option in options_of(command).values()}
    places = {place.name for command in COMMANDS.values() for place in arguments_of(command)}
    assert set(aliases.OPTIONS.values()) | set(aliases.LETTERS.values()) <= options
    assert set(aliases.ARGUMENTS.values()) <= places
    assert {word.split()[0] for word in aliases.COMMANDS.values()} <= {*COMMANDS, "--help", "--version"}
    assert not set(aliases.COMMANDS) & set(COMMANDS)


def test_words_without_a_name_are_known() -> None:
    assert usage("predict", COMMANDS["predict"]) == "deepzero predict RUN INPUT ..."
    assert usage("completion", COMMANDS["completion"]) == "deepzero completion SHELL"
    assert [place.needed for place in arguments_of(COMMANDS["export"])] == [True, True]
    assert [place.needed for place in arguments_of(COMMANDS["train"])] == [False]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("epochs must be 1 or more", "--epochs must be 1 or more"),
        ("the epochs must be 1 or more", "the epochs must be 1 or more"),
        ("choose step_size=1e-3 or epochs=2", "choose --step-size 1e-3 or --epochs 2"),
        ("a smaller step_size than 3", "a smaller --step-size than 3"),
        ("leave it (in Python: step_size=1e-3)", "leave it (in Python: step_size=1e-3)"),
        ("in a/step_size/b or 'step_size'", "in a/step_size/b or 'step_size'"),
        ("training.step_size is unknown", "training.step_size is unknown"),
        ('step_size="auto" is no number', 'step_size="auto" is no number'),
    ],
)
def test_arguments_are_told_as_options(message: str, said: str) -> None:
    assert in_options(message, ["epochs", "step-size"]) == said
    assert in_options(message, []) == message
