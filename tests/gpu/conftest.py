"""Where the tests of this folder compute: a GPU, or what ``DEEPZERO_GPU_TESTS`` names, ``cpu`` or ``pretended``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pretended
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# The tables of the tests of rules, which are run here on another device.
sys.path.append(str(Path(__file__).parents[1] / "graph"))

KIND = os.environ.get("DEEPZERO_GPU_TESTS") or "cuda"
There = Callable[[Any], Any]


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device under test."""
    if KIND == pretended.NAME:
        with pretended.device() as place:
            yield place
    else:
        yield torch.device("cuda", 0) if KIND == "cuda" else torch.device(KIND)


@pytest.fixture
def there(device: torch.device) -> There:
    """Takes models, tensors, and nests of tensors to the device."""

    def move(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return pretended.moved(value, device) if KIND == pretended.NAME else value.to(device)
        return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)

    return move
