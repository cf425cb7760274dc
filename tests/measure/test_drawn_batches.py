"""Noise in place of images: its bits belong to records, so they are pinned."""

import pytest
import torch

from deepzero.measure.cases import CASES
from deepzero.measure.drawn_batches import noise_batch
from deepzero.randomness import derive_seed


def test_noise_is_drawn_from_the_seed_images_first() -> None:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(3, 2, 4, 4, generator=generator), torch.randint(10, (3,), generator=generator)
    found, labels = noise_batch(3, 2, 4, seed=7)
    assert torch.equal(found, x)
    assert torch.equal(labels, y)


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_noise_of_the_cases_has_the_seed_of_images() -> None:
    x, y = CASES["resnet20"].batch(2, 5)
    expected, labels = noise_batch(2, seed=derive_seed(5, "images"))
    assert torch.equal(x, expected)
    assert torch.equal(y, labels)
