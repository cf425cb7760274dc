from __future__ import annotations

import pytest
import torch

from deepzero.errors import InvalidInputError
from deepzero.models import SimpleCNN


@pytest.mark.parametrize(("depth", "parameters"), [(1, 730), (2, 3700), (3, 6670), (4, 9640), (5, 12610)])
def test_parameter_counts_are_the_papers(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in SimpleCNN(depth=depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_smallest_image_gives_logits(depth: int) -> None:
    model = SimpleCNN(depth=depth, width=4, in_channels=2, num_classes=7)
    assert model(torch.ones(3, 2, 2**depth, 2**depth)).shape == (3, 7)


@pytest.mark.parametrize("options", [{"depth": 0}, {"depth": 6}, {"depth": 1.5}, {"width": 0}, {"num_classes": True}])
def test_bad_sizes_are_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        SimpleCNN(**options)
