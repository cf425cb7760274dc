from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from deepzero.data import fashion_mnist, load, load_fashion_mnist
from deepzero.errors import DataNotFoundError, InvalidInputError


def write_idx(path: Path, values: torch.Tensor) -> None:
    content = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    content += values.numpy().astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_set(folder: Path, *, suffix: str = "") -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.randint(0, 256, (20, 28, 28), generator=torch.Generator().manual_seed(0))
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", torch.arange(20) % 10)
    return images.to(torch.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_and_labels_are_those_of_the_files(tmp_path: Path, suffix: str) -> None:
    images = write_set(tmp_path, suffix=suffix)
    for dataset in load_fashion_mnist(tmp_path):
        assert torch.equal(dataset.inputs[:, 0], images)
        assert dataset.labels.tolist() == list(range(10)) * 2


def test_debian_folder_is_found_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "debian", suffix=".gz")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("DEEPZERO_DATA", str(tmp_path / "nothing"))
    splits = load("fashion-mnist", validation=0.5, image_size=14)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 10, 20)
    assert splits.train.image_shape == (1, 14, 14)


def test_missing_files_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"apt install dataset-fashion-mnist.*github\.com") as caught:
        load_fashion_mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.zeros(19))
    with pytest.raises(InvalidInputError, match="20 images but 19 labels"):
        load_fashion_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.zeros(20, 1))
    with pytest.raises(InvalidInputError, match="1 dimensions"):
        load_fashion_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.full((20,), 10))
    with pytest.raises(InvalidInputError, match="0 to 9"):
        load_fashion_mnist(tmp_path)
