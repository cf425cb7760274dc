"""``deepzero data``: the named sets, and what a path holds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from own_files import flowers, image_folder, noise, npz

from deepzero import data
from deepzero.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPZERO_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("deepzero.data.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nothing")
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["data", *words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    return json.loads(printed(capsys, *words, "--json"))


def test_the_named_sets_say_where_they_are_or_how_to_get_them(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(elsewhere / "data" / "image-folder" / "train")
    image_folder(elsewhere / "data" / "image-folder" / "val")
    sets = {one["name"]: one for one in told(capsys)["sets"]}
    assert list(sets) == list(data.names())
    assert [one["found"] for one in sets.values()] == [True, False, False, True]
    assert sets["image-folder"]["folder"] == str(elsewhere / "data" / "image-folder")
    assert str(elsewhere / "data" / "cifar10") in sets["cifar10"]["advice"]
    out = printed(capsys)
    assert "cifar-10-binary.tar.gz" in out
    assert "apt install dataset-fashion-mnist" in out
    assert str(elsewhere / "data" / "image-folder") in out


def test_data_dir_says_where_to_look(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(elsewhere / "here" / "train")
    image_folder(elsewhere / "here" / "test")
    assert told(capsys, "--data-dir", "here")["sets"][3]["found"]


def test_a_folder_of_images(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(elsewhere / "animals", size=(32, 32))
    image_folder(elsewhere / "animals", classes=("cats",), count=20, size=(32, 32))
    out = printed(capsys, "animals")
    for words in (
        "20% of every class, 6 samples, are held out as the test set",
        "animals: image-folder, 30 images of 32x32 pixels, color, 2 classes",
        "'cats' is the largest class, 'dogs' is 1/2 of it; always answering 'cats' is right for 66.7% of the test set",
        "to train: deepzero train --data animals --batch-size 21\n",
        "trains simple_cnn (depth 3), 10% of its weights queried at a step, for 20 epochs of 21 samples in batches of 21",
        "selects the weights by 3",
        "looks at the 6 of the test set once",
    ):
        assert words in out
    record = told(capsys, "animals")
    assert record["classes"] == [
        {"name": "cats", "train": 14, "validation": 2, "test": 4},
        {"name": "dogs", "train": 7, "validation": 1, "test": 2},
    ]
    assert record["balance"] == {"largest": "cats", "smallest": "dogs", "ratio": 2.0, "baseline": 4 / 6}


def test_a_table_and_its_options(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flowers(elsewhere / "my flowers.csv")
    out = printed(capsys, "my flowers.csv", "--target", "species", "--test", "0.3")
    assert "30 rows of 2 numbers (width, year) and the target 'species', 3 classes" in out
    assert "networks that take these inputs: mlp\n" in out
    assert "deepzero train --data 'my flowers.csv' --target species --test 0.3 --batch-size 18" in out
    record = told(capsys, "my flowers.csv", "--target", "species", "--test", "0.3")
    assert (record["inputs"], record["columns"], record["samples"]["test"]) == ("table", ["width", "year"], 9)
    assert shlex.split(record["training"]["command"])[3] == "my flowers.csv"
    assert "--target species" in printed(capsys, "my flowers.csv", code=2)  # the last column, the year, is no target


def test_images_of_an_npz_file_at_another_size(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz(elsewhere / "set.npz", x=noise(30, 16, 16), y=np.arange(30) % 3)
    assert told(capsys, "set.npz", "--image-size", "8")["shape"] == [1, 8, 8]
    assert "--image-size 8" in printed(capsys, "set.npz", "--image-size", "8")


def test_only_networks_that_take_the_inputs_are_named(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz(elsewhere / "set.npz", x=noise(30, 8, 12), y=np.arange(30) % 3)
    networks = told(capsys, "set.npz")["networks"]
    assert "resnet20" in networks
    assert not {"digits_cnn", "simple_cnn", "lenet", "local_mixer"} & set(networks)
    assert "digits_cnn" in told(capsys, "digits")["networks"]


def test_many_classes_are_cut_and_equal_ones_told(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz(elsewhere / "set.npz", x=noise(400, 4), y=np.arange(400) % 40)
    out = printed(capsys, "set.npz")
    assert "... and 10 more (--json has all)" in out
    assert "all classes have the same number of samples" in out
    assert len(told(capsys, "set.npz")["classes"]) == 40


def test_a_named_set_is_described_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "digits")
    assert "digits, 1,797 images of 8x8 pixels, gray, 10 classes" in out
    assert told(capsys, "digits")["training"]["command"] == "deepzero train --data digits"


@pytest.mark.parametrize("words", [["t.csv", "--target", "species"], ["animals", "--image-size", "8", "--test", "0.5"]])
def test_the_command_that_is_printed_does_what_is_said(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    flowers(elsewhere / "t.csv", rows=80 if words[0] == "t.csv" else 30)
    image_folder(elsewhere / "animals")
    record = told(capsys, *words)
    training = record["training"]
    command = [*shlex.split(training["command"])[1:], "--epochs", "1", "--estimator", "fo", "--out", "run", "--quiet"]
    assert main(command) == 0
    config = json.loads((elsewhere / "run" / "run.json").read_bytes())["config"]
    assert config["model"] == {"name": training["network"], "options": training["options"]}
    assert config["data"]["batch_size"] == training["batch_size"] == min(32, record["samples"]["train"])
    assert config["sparsity"]["sparsity"] == training["sparsity"]
    assert config["data"]["name"] == record["kind"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["animls"], "did you mean"),
        (["."], "empty folder"),
        (["set.npz", "--target", "y"], "is for tables"),
        (["set.npz", "--data-dir", "."], "leave --data-dir out"),
        (["set.npz", "--test", "2"], "in (0, 1)"),
        (["set.npz", "--image-size", "3"], "1, 2, 4, 8, 16"),
        (["set.npz", "--image-size", "x"], "takes a whole number"),
        (["set.npz", "--taget", "y"], "did you mean --target?"),
        (["digits", "--data-dir", "."], "needs no files"),
        (["digits", "--target", "y"], "data of your own"),
        (["--target", "y"], "is for a PATH"),
        (["cifar10"], "cifar-10-binary.tar.gz"),
    ],
)
def test_mistakes(elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    if words == ["."]:
        (elsewhere / "empty").mkdir()
        words = ["empty"]
    else:
        (elsewhere / "animals").mkdir()
        npz(elsewhere / "set.npz", x=noise(30, 16, 16), y=np.arange(30) % 3)
    assert message in printed(capsys, *words, code=2)


def test_json_says_why_not_too(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "empty").mkdir()
    assert main(["data", "empty", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["error"].startswith("empty is no data set that can be read: it is an empty folder")
