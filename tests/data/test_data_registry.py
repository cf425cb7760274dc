from __future__ import annotations

from typing import Any

import pytest
import torch

from deepzero import data
from deepzero.data import BatchLoader, Dataset
from deepzero.errors import InvalidInputError


def rows(dataset: Dataset) -> list[tuple[int, ...]]:
    return [tuple(row) for row in dataset.inputs.flatten(1).tolist()]


def test_names() -> None:
    assert data.names() == ("digits", "cifar10", "fashion-mnist", "image-folder")


def test_digits_splits_are_disjoint_complete_and_stratified() -> None:
    splits = data.load("digits")
    parts = [splits.train, splits.validation, splits.test]
    everything = [row for part in parts for row in rows(part)]
    assert [len(part) for part in parts] == [1295, 143, 359]
    assert len(set(everything)) == len(everything) == 1797  # no digit occurs twice in the set
    for part in parts:
        counts = part.labels.bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= max(2, len(part) // 100)


def test_digits_test_set_does_not_depend_on_the_seed_and_validation_does() -> None:
    first, second = data.load("digits", seed=0), data.load("digits", seed=1)
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.validation.inputs, second.validation.inputs)


def test_digits_constants_normalize_the_training_images() -> None:
    train, _ = data.load_digits()
    assert data.channel_statistics(train.inputs, scale=train.scale) == (train.mean, train.std)
    x, _ = BatchLoader(train, batch_size=len(train)).batch(0, 0)
    assert float(x.mean()) == pytest.approx(0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_limit_shortens_only_the_training_set() -> None:
    whole, short = data.load("digits"), data.load("digits", limit=100)
    assert torch.equal(short.train.inputs, whole.train.inputs[:100])
    assert torch.equal(short.validation.inputs, whole.validation.inputs)
    assert torch.equal(short.test.inputs, whole.test.inputs)
    assert len(data.load("digits", limit=10**6).train) == len(whole.train)


def test_image_size_averages_tiles_and_normalizes_anew() -> None:
    whole, small = data.load("digits", validation=0), data.load("digits", validation=0, image_size=4)
    assert len(small.validation) == 0
    for before, after in ((whole.train, small.train), (whole.test, small.test)):
        assert torch.equal(after.inputs, data.downsample(before.inputs, 4))
        assert (after.mean, after.std) == data.channel_statistics(small.train.inputs, scale=16.0)
    assert data.load("digits", image_size=8).train.std == whole.train.std


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "digits, cifar10, fashion-mnist"),
        ("digits", {"limit": 0}, "limit"),
        ("digits", {"limit": 0.5}, "limit"),
        ("digits", {"image_size": 5}, "1, 2, 4, 8"),
        ("cifar10", {"validation": 1.0}, r"\[0, 1\)"),
        ("digits", {"seed": -1}, "at least 0"),
    ],
)
def test_bad_requests_say_what_to_type(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        data.load(name, **options)
