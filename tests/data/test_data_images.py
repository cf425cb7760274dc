from __future__ import annotations

import math

import pytest
import torch

from deepzero.data import channel_statistics, downsample
from deepzero.errors import InvalidInputError


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_pixel_is_the_mean_of_its_tile(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (3, 2, 6, 6), generator=torch.Generator().manual_seed(0)).to(dtype)
    small = downsample(images, 2)
    assert (small.shape, small.dtype) == ((3, 2, 2, 2), dtype)
    for row in range(2):
        for column in range(2):
            tile = images[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].double().mean((2, 3))
            expected = tile if dtype == torch.float32 else (tile + 0.5).floor()
            torch.testing.assert_close(small[:, :, row, column].double(), expected, rtol=1e-6, atol=0)


def test_white_stays_white() -> None:
    assert int(downsample(torch.full((1, 1, 32, 32), 255, dtype=torch.uint8), 1)) == 255


def test_sets_larger_than_a_chunk_are_whole() -> None:
    images = (torch.arange(5000) % 256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    assert torch.equal(downsample(images, 1), images[:, :, :1, :1])


@pytest.mark.parametrize("size", [0, 3, 16])
def test_a_size_that_does_not_divide_is_refused_with_those_that_do(size: int) -> None:
    with pytest.raises(InvalidInputError, match="1, 2, 4, 8"):
        downsample(torch.zeros(1, 1, 8, 8), size)


def test_statistics_are_per_channel_and_in_units_of_white() -> None:
    images = torch.tensor([0, 10, 10, 10], dtype=torch.uint8).reshape(2, 2, 1, 1)
    mean, std = channel_statistics(images, scale=10.0)
    assert mean == (0.5, 1.0)
    assert std == (0.5, 0.0)
    assert math.isclose(channel_statistics(images.float(), scale=20.0)[0][0], 0.25)
