"""`deepzero train` with one's own network, data and recipe, and what comes after: predict, evaluate, export."""

import csv
import json
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepzero import data
from deepzero.cli import main
from deepzero.data.dataset import Splits
from deepzero.errors import InvalidInputError
from deepzero.recipes import config_file, find
from deepzero.run import load_run
from deepzero.tasks.classification import from_record
from deepzero.training import read_metrics
from deepzero.training.progress import ProgressBar

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels, width=4):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))
"""

RECIPE = """
import torch
import torch.nn.functional as F
import deepzero as dz

def recipe(rate: float = 0.5, slow: bool = False):
    torch.manual_seed(0)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    model = torch.nn.Linear(3, 2)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    zo = dz.CGE(model, loss=F.cross_entropy)
    return dz.Trainer(model, zo, optimizer, data, validation=[(x, y)], epochs=4)

def configured(batch: int = 16):
    from dataclasses import replace
    from deepzero.recipes import find
    config = find("digits").config()
    return replace(config, data=replace(config.data, batch_size=batch, limit=64))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user would have it: photos, a table, a network, a recipe."""
    folder = tmp_path_factory.mktemp("own")
    draw = np.random.default_rng(0)
    for name, light in (("day", 200), ("night", 60)):
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(30):
            pixels = draw.integers(0, light, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{k}.png")
    rows = [{"a": draw.normal() + 4 * (k % 2), "b": draw.normal(), "kind": ("no", "yes")[k % 2]} for k in range(120)]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "own_net_of_tests.py").write_text(NET)
    (folder / "own_recipe_of_tests.py").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for name in ("own_net_of_tests", "own_recipe_of_tests"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def run(*words: Path | str) -> int:
    return main(list(map(str, words)))


def result_of(capsys: pytest.CaptureFixture[str], *words: Path | str) -> dict[str, int | str]:
    """What ``--json`` tells."""
    assert run(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    """A finished run on the photos, with a network of the user's own."""
    before = Path.cwd()
    os.chdir(place)
    try:
        words = ["train", "--model", "own_net_of_tests.py", "--data", "photos", "--epochs", "2", "--out", "runs/photos"]
        assert main([*words, "--quiet"]) == 0
    finally:
        os.chdir(before)
    return Path("runs/photos")


def test_an_own_network_on_a_folder_of_images(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_run(photos)
    assert trained.classes == ("day", "night")
    assert trained.config["data"]["name"] == "image-folder"
    files = [f"photos/{kind}/{k}.png" for kind in ("day", "night") for k in (1, 2)]
    told = result_of(capsys, "predict", photos, *files)["predictions"]
    assert [row["input"] for row in told] == files
    assert [row["class"] for row in told] == trained.predict(files)
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in told)


@pytest.mark.parametrize("limit", [(), ("--limit", "64")])
def test_data_without_a_network_are_read_once(
    limit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read to find a network that suits them, and the training gets what was read."""
    reads, whole = [], data.load

    def load(*args: str, **options: Any) -> Splits:
        reads.append(options["limit"])
        return whole(*args, **options)

    monkeypatch.setattr("deepzero.tasks.task_data.data.load", load)
    assert run("train", "--data", "table.csv", "--epochs", "1", "--out", tmp_path / "run", *limit) == 0
    assert len(reads) == 1
    assert "".join(capsys.readouterr()).count("table.csv: the ta") == 1  # a note on what a rule decided


def test_predictions_are_printed_or_written(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", photos, "photos/night", "--out", "found.csv") == 0
    with Path("found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert set(rows[0]) == {"input", "class", "probability", "day", "night"}
    capsys.readouterr()
    assert run("predict", photos, "photos/day/3.png") == 0
    told = capsys.readouterr().out
    assert told.startswith("photos/day/3.png: ")
    assert "%)" in told


def test_scores_are_those_of_the_run_and_of_other_data(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((photos / "summary.json").read_text())
    own = result_of(capsys, "evaluate", photos)
    assert own["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert own["loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    everything = result_of(capsys, "evaluate", photos, "--data", "photos")
    assert everything["samples"] == 60
    assert run("evaluate", photos, "--data", "table.csv", "--target", "kind") == 2
    assert "does not fit the network: its kind is 'table'" in capsys.readouterr().err


def test_an_export_runs_elsewhere(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = result_of(capsys, "export", photos, "photos.pt2")
    assert told["bytes"] == Path("photos.pt2").stat().st_size
    trained = load_run(photos)
    x = trained.inputs("photos/day/1.png")
    assert torch.allclose(torch.export.load("photos.pt2").module()(x), trained.model(x), atol=1e-6)


def test_a_table_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    told = result_of(capsys, "train", "--data", "table.csv", "--target", "kind", "--epochs", "8", "--out", "runs/table")
    assert told["summary"]["test_accuracy"] > 0.8
    assert load_run("runs/table").classes == ("no", "yes")
    predictions = result_of(capsys, "predict", "runs/table", "table.csv")["predictions"]
    assert {row["class"] for row in predictions} <= {"no", "yes"}
    assert len(predictions) == 120


def test_the_record_of_a_run_reproduces_it(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = result_of(capsys, "train", "--config", photos / "run.json", "--out", "runs/again")["summary"]
    first = json.loads((photos / "summary.json").read_text())
    assert again["config"] == first["config"]
    assert again["test_loss"] == first["test_loss"]


def test_a_trainer_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    told = result_of(
        capsys, "train", "own_recipe_of_tests.py", "--set", "rate=0.25", "--epochs", "3", "--out", "runs/r"
    )
    assert told["summary"]["steps"] == 6
    assert told["summary"]["config"]["optimizer"]["groups"][0]["lr"] == 0.25
    assert json.loads(Path("runs/r/run.json").read_text())["own"]["set"] == ["rate=0.25"]
    assert run("train", "own_recipe_of_tests.py") == 0  # the trainer's own epochs, a folder named after the file
    assert json.loads(Path("runs/own_recipe_of_tests/summary.json").read_text())["steps"] == 8


def test_a_trainer_of_ones_own_goes_on_without_being_named_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result_of(capsys, "train", "own_recipe_of_tests.py", "--out", "runs/whole")["summary"]

    def interrupt(_self: ProgressBar, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("deepzero.training.progress.ProgressBar.write", interrupt)
        assert run("train", "own_recipe_of_tests.py", "--out", "runs/part") == 75
    assert "deepzero train --resume --out runs/part" in capsys.readouterr().out
    assert run("train", "--resume", "--out", "runs/part") == 0
    part = json.loads(Path("runs/part/summary.json").read_text())
    assert part["validation_loss"] == whole["validation_loss"]
    steps = [r["step"] for r in read_metrics(Path("runs/part/metrics.jsonl")) if r["kind"] == "step"]
    assert steps == list(range(1, 9))


def test_the_latest_unfinished_run_of_the_same_file_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    recipe = str(place / "own_recipe_of_tests.py")
    monkeypatch.chdir(tmp_path)
    assert run("train", recipe, "--max-minutes", "1e-9") == 75
    assert run("train", "digits", "--limit", "64", "--estimator", "fo", "--max-minutes", "1e-9") == 75  # started later
    assert run("train", recipe, "--resume") == 0
    assert Path("runs/own_recipe_of_tests/summary.json").exists()


def test_a_configuration_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "own_recipe_of_tests.py:configured", "--set", "batch=32", "--epochs", "1", "--out", "runs/c"]
    told = result_of(capsys, *words, "--estimator", "fo", "--sparsity", "0")
    assert told["summary"]["config"]["data"]["batch_size"] == 32
    assert told["summary"]["steps"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits", "--data-dir", "."], "--data-dir has no effect: digits needs no files"),
        (["train", "--data", "photos", "--data-dir", "."], "--data-dir has no effect: the data are at"),
        (["train", "digits", "--queries", "3"], "--queries has no effect"),
        (["train", "digits", "--estimator", "fo", "--step-size", "1e-3"], "--step-size has no effect"),
        (["train", "digits", "--target", "kind"], "--target has no effect without --data"),
        (["train", "digits", "--set", "a=1"], "--set is for a recipe of your own"),
        (
            ["train", "own_recipe_of_tests.py", "--batch-size", "3"],
            "--batch-size has no effect.*--set batch_size=VALUE",
        ),
        (["train", "own_recipe_of_tests.py", "--data", "photos"], "--data has no effect"),
        (["train", "own_recipe_of_tests.py", "--set", "speed=3"], "recipe has no parameter 'speed'"),
        (["train", "digits", "--config", "x.json"], "give a recipe or --config, not both"),
        (["train", "--config", "missing.toml"], "there is no file missing.toml"),
        (["train", "--config", "photos"], "--config takes a file that ends in .json or .toml"),
        (["train", "--model", "nett"], "unknown model 'nett'"),
        (["train", "--model", "own_net_of_tests.py:Nett"], r"has no 'Nett' \(did you mean Net\?\)"),
        (["train", "--data", "photoos"], r"photoos \(did you mean .*photos"),
        (["predict", "runs/none", "photos/day/1.png"], "runs/none holds no run"),
        (["export", "runs/none", "net.onnx"], "runs/none holds no run"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_a_file_of_settings_changes_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "digits"\nseed = 3\n[training]\nepochs = 2\n[model.options]\nwidths = [4, 4]\n')
    name, config = config_file(file)
    assert (name, config.seed, config.training.epochs) == ("mine", 3, 2)
    assert config.training.learning_rate == find("digits").config().training.learning_rate
    assert config.model.options == {"widths": [4, 4]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('recipe = "digts"', r"unknown recipe 'digts' \(did you mean digits\?\)"),
        ('recipe = "digits"\n[training]\nepoch = 2', r"unknown setting training\.epoch \(did you mean epochs\?\)"),
        ('recipe = "digits"\n[training]\nepochs = "two"', "epochs must be an integer of at least 1, got 'two'"),
        ('recipe = "digits"\ntraining = 3', "training must hold settings by name, got 3"),
        ('[data]\nname = "digits"', "the setting model is missing"),
        ("[data\n", "is no TOML"),
    ],
)
def test_a_file_of_settings_with_a_mistake_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        config_file(file)


def test_a_record_gives_its_configuration_back() -> None:
    config = find("digits").config()
    assert from_record(json.loads(json.dumps(asdict(config)))) == config
