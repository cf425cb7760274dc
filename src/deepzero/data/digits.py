"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.

Test set of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from deepzero.data.dataset import Dataset, split
from deepzero.extras import required_for

FILE = "datasets", "data", "digits.csv.gz"
TEST_FRACTION = 0.2
TEST_SEED = 0  # part of the definition of the test set, so no argument


def load_digits() -> tuple[Dataset, Dataset]:
    """Training and test set, 1,438 and 359 images ``[1, 8, 8]``; the test set is one stratified fifth, always the same.

    >>> train, test = load_digits()
    >>> len(train), len(test), train.image_shape
    (1438, 359, (1, 8, 8))
    """
    pixels, labels = _read()
    dataset = Dataset(
        inputs=torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 8, 8),
        labels=torch.from_numpy(labels).long(),
        num_classes=10,
        mean=(0.3044,),
        std=(0.3757,),
        name="digits",
        scale=16.0,
    )
    return split(dataset, TEST_FRACTION, seed=TEST_SEED)


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[1797, 64]`` from 0 to 16, and labels, from the file in scikit-learn, which takes a second to import."""
    package = importlib.util.find_spec("sklearn")
    folders = (package.submodule_search_locations or []) if package is not None else []
    for folder in folders:
        file = Path(folder, *FILE)
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    with required_for("the data set digits"):
        from sklearn import datasets  # noqa: PLC0415 - a version that keeps the file elsewhere

    pixels, labels = datasets.load_digits(return_X_y=True)
    return pixels, labels
