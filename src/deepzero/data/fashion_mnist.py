"""Fashion-MNIST: 60,000 and 10,000 gray images of clothes, 28x28 pixels.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747, 2017.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deepzero.data.data_files import candidate_folders, not_found
from deepzero.data.dataset import Dataset
from deepzero.data.idx import read_dimensions
from deepzero.errors import InvalidInputError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = "train", "t10k"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def load_fashion_mnist(data_dir: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """Training and test set from the four IDX files, plain or with the ending ``.gz``.

    Args:
        data_dir: their folder; by default also where the Debian package ``dataset-fashion-mnist`` puts them.

    Raises:
        DataNotFoundError: a file is in none of the folders.
        InvalidInputError: a file is truncated or corrupt.
    """
    folders = candidate_folders("fashion-mnist", data_dir, system=[DEBIAN_FOLDER])
    return _load(folders, TRAIN), _load(folders, TEST)


def find_fashion_mnist(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the training images.

    Raises:
        DataNotFoundError: a file is in none of the folders.
    """
    folders = candidate_folders("fashion-mnist", data_dir, system=[DEBIAN_FOLDER])
    stems = [f"{prefix}-{kind}" for prefix in (TRAIN, TEST) for kind in (IMAGES, LABELS)]
    paths = [_found(folders, stem) for stem in stems]
    return paths[0].parent


def _load(folders: Sequence[Path], prefix: str) -> Dataset:
    images = read_dimensions(_found(folders, f"{prefix}-{IMAGES}"), dimensions=3)
    labels = read_dimensions(_found(folders, f"{prefix}-{LABELS}"), dimensions=1)
    if len(images) != len(labels):
        raise InvalidInputError(
            f"the files {prefix}-* disagree: {len(images)} images but {len(labels)} labels; fetch both again"
        )
    return Dataset(
        inputs=images.unsqueeze(1),
        labels=labels.long(),
        num_classes=10,
        class_names=CLASSES,
        mean=(0.2860,),
        std=(0.3530,),
        name="fashion-mnist",
    )


def _found(folders: Sequence[Path], stem: str) -> Path:
    for folder in folders:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    raise not_found(
        f"Fashion-MNIST's file {stem}[.gz]",
        folders,
        where_to_get=(
            "On Debian and Ubuntu `apt install dataset-fashion-mnist` is all it takes; elsewhere get the four files "
            "from https://github.com/zalandoresearch/fashion-mnist (data/fashion)."
        ),
        what_to_put="the files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    )
