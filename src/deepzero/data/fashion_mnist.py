"""Fashion-MNIST: 60,000 and 10,000 gray images of clothes, 28x28 pixels.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747, 2017.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from deepzero.data.dataset import Dataset
from deepzero.data.files import candidate_folders, not_found
from deepzero.data.idx import read_idx
from deepzero.errors import InvalidInputError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = "train", "t10k"


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


def _load(folders: Sequence[Path], prefix: str) -> Dataset:
    images = _read(folders, f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = _read(folders, f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise InvalidInputError(
            f"the files {prefix}-* disagree: {len(images)} images but {len(labels)} labels; fetch both again"
        )
    return Dataset(
        images=images.unsqueeze(1),
        labels=labels.long(),
        num_classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        name="fashion-mnist",
    )


def _read(folders: Sequence[Path], stem: str, *, dimensions: int) -> UInt8[Tensor, " ..."]:
    for folder in folders:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                values = read_idx(path)
                if values.dim() != dimensions:
                    raise InvalidInputError(f"{path} should have {dimensions} dimensions, got {list(values.shape)}")
                return values
    raise not_found(
        f"Fashion-MNIST's file {stem}[.gz]",
        folders,
        where_to_get=(
            "On Debian and Ubuntu `apt install dataset-fashion-mnist` is all it takes; elsewhere get the four files "
            "from https://github.com/zalandoresearch/fashion-mnist (data/fashion)."
        ),
        what_to_put="the files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    )
