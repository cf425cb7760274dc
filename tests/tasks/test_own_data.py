"""Training on a file or folder of one's own: a configuration says all, and survives JSON."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from own_files import flowers, image_folder

from deepzero import data
from deepzero.errors import InvalidInputError
from deepzero.tasks.classification import (
    ClassificationConfig,
    DataConfig,
    EstimatorConfig,
    ModelConfig,
    train,
)
from deepzero.tasks.classification.classifier_setup import make_model
from deepzero.tasks.task_data import read_data
from deepzero.training import TrainingConfig


def run_config(images: DataConfig, model: str = "mlp") -> ClassificationConfig:
    return ClassificationConfig(
        data=images,
        model=ModelConfig(name=model),
        estimator=EstimatorConfig(method="fo"),
        training=TrainingConfig(epochs=2, warmup_epochs=0),
    )


def same(first: data.Splits, second: data.Splits) -> bool:
    pairs = [(getattr(first, part), getattr(second, part)) for part in ("train", "validation", "test")]
    return all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels) and a.mean == b.mean for a, b in pairs
    )


def test_a_configuration_reads_the_same_data_after_json_and_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flowers(tmp_path / "flowers.csv")
    monkeypatch.chdir(tmp_path)
    config = run_config(DataConfig.of_path("flowers.csv", target="species", test=0.3, validation=0.2, batch_size=8))
    with caplog.at_level(logging.INFO, "deepzero"):
        splits = read_data(config.data)
    told = [record.getMessage() for record in caplog.records]
    assert splits.notes
    assert told[-len(splits.notes) :] == list(splits.notes)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 3, 9]
    assert same(splits, data.load(path="flowers.csv", target="species", test=0.3, validation=0.2))
    stored = json.loads(json.dumps(asdict(config.data)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert DataConfig(**stored) == config.data
    assert same(read_data(DataConfig(**stored)), splits)


def test_a_configuration_of_an_older_version_can_be_read() -> None:
    """The fields that ``run.json`` held before data of one's own could be named."""
    old = {
        "name": "digits",
        "batch_size": 64,
        "validation": 0.1,
        "padding": 0,
        "flip": False,
        "drop_last": True,
        "image_size": None,
        "limit": None,
    }
    config = DataConfig(**old)
    assert (config.path, config.target, config.test, config.title) == (None, None, None, "digits")


def test_what_lies_at_the_path_must_still_be_of_its_kind(tmp_path: Path) -> None:
    path = flowers(tmp_path / "flowers.csv")
    config = run_config(DataConfig.of_path(path, target="species", batch_size=8))
    path.unlink()
    image_folder(tmp_path / "flowers.csv")
    with pytest.raises(InvalidInputError, match="of the kind image-folder, not csv"):
        read_data(config.data)


@pytest.mark.parametrize("kind", ["table", "images"])
def test_a_run_on_data_of_ones_own_trains_and_resumes(tmp_path: Path, kind: str) -> None:
    if kind == "table":
        images = DataConfig.of_path(flowers(tmp_path / "t.csv", rows=60), target="species", batch_size=8)
    else:
        images = DataConfig.of_path(
            image_folder(tmp_path / "animals", size=(12, 8)), batch_size=4, padding=1, flip=True
        )
    result = train(run_config(images), out=tmp_path / "run")
    assert result.summary is not None
    assert result.summary["config"]["data"]["path"] == str(tmp_path / ("t.csv" if kind == "table" else "animals"))
    again = train(run_config(images), out=tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))


def test_a_network_for_images_does_not_take_a_table(tmp_path: Path) -> None:
    config = run_config(
        DataConfig.of_path(flowers(tmp_path / "t.csv"), target="species", batch_size=8), model="resnet20"
    )
    with pytest.raises(InvalidInputError, match="got rows of 2 columns; a model for tables is mlp"):
        make_model(config.model, read_data(config.data).train, seed=0)


def test_a_table_cannot_be_cropped(tmp_path: Path) -> None:
    images = DataConfig.of_path(flowers(tmp_path / "t.csv"), target="species", batch_size=8, padding=2)
    with pytest.raises(InvalidInputError, match="rows cannot be cropped or flipped"):
        train(run_config(images), out=tmp_path / "run")
