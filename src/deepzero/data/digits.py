"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn.

Test set of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import torch

from deepzero.data.dataset import Dataset, split

TEST_FRACTION = 0.2
TEST_SEED = 0  # part of the definition of the test set, so no argument


def load_digits() -> tuple[Dataset, Dataset]:
    """Training and test set, 1,438 and 359 images ``[1, 8, 8]``; the test set is one stratified fifth, always the same.

    >>> train, test = load_digits()
    >>> len(train), len(test), train.image_shape
    (1438, 359, (1, 8, 8))
    """
    from sklearn import datasets  # noqa: PLC0415 - takes a second to import

    pixels, labels = datasets.load_digits(return_X_y=True)
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
