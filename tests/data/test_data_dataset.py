from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepzero.data import Dataset, split
from deepzero.errors import InvalidInputError


def blank(labels: Tensor, num_classes: int = 3) -> Dataset:
    """Images that hold their own index."""
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1).expand(count, 2, 3, 3)
    return Dataset(
        inputs=images, labels=labels, num_classes=num_classes, mean=(0.1, 0.2), std=(1.0, 2.0), name="numbered"
    )


def numbers(dataset: Dataset) -> list[int]:
    return dataset.inputs[:, 0, 0, 0].tolist()


def test_subset_keeps_images_and_labels_together() -> None:
    part = blank(torch.tensor([0, 1, 2, 1])).subset(torch.tensor([3, 0]))
    assert (numbers(part), part.labels.tolist(), part.image_shape) == ([3, 0], [1, 0], (2, 3, 3))


@pytest.mark.parametrize("bad", [-1, 3])
def test_label_out_of_range_is_located(bad: int) -> None:
    with pytest.raises(InvalidInputError, match=rf"0 to 2; 1 are not, the first is {bad} at index 2"):
        blank(torch.tensor([0, 1, bad, 1]))


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0.0, 1.0])}, "int64"),
        ({"labels": torch.tensor([0, 1, 2])}, r"shape \[2\]"),
        ({"inputs": torch.zeros(2, 3, 3, dtype=torch.uint8)}, r"\[N, C, H, W\]"),
        ({"inputs": torch.zeros(2, 2, 3, 3, dtype=torch.float64)}, "uint8 or float32"),
        ({"inputs": torch.full((2, 2, 3, 3), math.nan)}, "finite"),
        ({"mean": (0.0,)}, "2 channels"),
        ({"std": (1.0, 0.0)}, "positive"),
        ({"std": (1.0, math.nan)}, "positive"),
        ({"scale": 0.0}, "positive"),
    ],
)
def test_inconsistent_fields_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(blank(torch.tensor([0, 1])), **change)


def test_split_is_disjoint_complete_stratified_and_keeps_the_order() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 10)[
        torch.randperm(80, generator=torch.Generator().manual_seed(0))
    ]
    dataset = blank(labels)
    rest, held_out = split(dataset, 0.2, seed=3)
    assert held_out.labels.bincount().tolist() == [10, 4, 2]
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(80))
    for part in (rest, held_out):
        assert numbers(part) == sorted(numbers(part))
        assert torch.equal(part.labels, labels[numbers(part)])


def test_split_is_a_function_of_the_seed() -> None:
    dataset = blank(torch.arange(90) % 3)
    draws = [numbers(split(dataset, 0.3, seed=seed)[1]) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_nothing_may_be_held_out() -> None:
    rest, held_out = split(blank(torch.tensor([0, 1, 2])), 0)
    assert (len(rest), len(held_out)) == (3, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(InvalidInputError, match=r"\[0, 1\)"):
        split(blank(torch.tensor([0, 1])), fraction)
