"""Images in folders, a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepzero import data
from deepzero.data.image_folders import load_image_folder
from deepzero.errors import DataNotFoundError, InvalidInputError

COLOURS = {"blue": (0, 0, 255), "red": (255, 102, 0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of one colour each: 3 training images and a test image, of different sizes and formats."""
    for part, count in (("train", 3), ("val", 1)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (40 + 10 * k, 50), colour).save(tmp_path / part / name / f"{k}.png")
    return tmp_path


def test_classes_are_folders_in_alphabetical_order(folder: Path) -> None:
    train, test = load_image_folder(folder, size=16)
    assert (len(train), len(test), train.num_classes) == (6, 2, 2)
    assert train.image_shape == (3, 16, 16)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for dataset in (train, test):
        for image, label in zip(dataset.inputs, dataset.labels, strict=True):
            expected = torch.tensor(list(COLOURS.values())[label], dtype=torch.uint8)
            assert bool((image == expected.reshape(3, 1, 1)).all())
    assert train.mean == test.mean == (0.5, 0.2, 0.5)
    assert len(data.load("image-folder", data_dir=folder, limit=2, validation=0.0).train) == 2


def test_the_middle_is_kept_and_gray_becomes_three_channels(tmp_path: Path) -> None:
    picture = np.zeros((64, 192), dtype=np.uint8)
    picture[:, 64:128] = 255  # the middle third is white
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / part / "a" / "x.jpeg", quality=100)
        Image.fromarray(255 - picture).save(tmp_path / part / "a" / "y.jpg", quality=100)
    train, _ = load_image_folder(tmp_path, size=32)
    white, black = train.inputs.float().mean(dim=(1, 2, 3))
    assert white > 240
    assert black < 15
    assert torch.equal(train.inputs[:, 0], train.inputs[:, 2])


def test_what_is_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"train/CLASS and test/CLASS"):
        load_image_folder(folder / "train")
    (folder / "val" / "green").mkdir()
    with pytest.raises(InvalidInputError, match="only one of them has: green"):
        load_image_folder(folder, size=16)
    (folder / "train" / "green").mkdir()
    with pytest.raises(InvalidInputError, match=r"green holds no image"):
        load_image_folder(folder, size=16)
    for part in ("train", "val"):
        (folder / part / "green" / "0.png").write_bytes(b"no image")
    with pytest.raises(InvalidInputError, match=r"0\.png cannot be read as an image"):
        load_image_folder(folder, size=16)
