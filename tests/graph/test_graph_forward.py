"""Runs of a graph with values whose memory is laid out otherwise than that of the values it was exported for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import normal
from torch import nn

import deepzero as dz
from deepzero.graph.forward import max_pool2d


def test_a_batch_in_another_memory_format() -> None:
    """Exported for images in one memory format, a flattening is a view; in the other format it is a copy."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 3)).double()
    images = torch.randn(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (6,), generator=generator)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6, evaluator=dz.PropagationEvaluator())
    contiguous = zo.estimate(images, labels)
    other = zo.estimate(images.contiguous(memory_format=torch.channels_last), labels)
    for name, gradient in contiguous.gradients.items():
        torch.testing.assert_close(other.gradients[name], gradient)


@pytest.mark.parametrize(
    "window",
    [(2,), ((3, 2), (1, 3)), (3, (), 0, (2, 1)), (1, 2), (2, 2, 1), (3, 2, 0, 1, True), ((2, 4), (2, 4))],
    ids=str,
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maxima_of_a_graphs_run_are_those_of_torch(window: tuple[Any, ...], layout: torch.memory_format) -> None:
    """To the bit, in the same memory, and NaN where a window has one."""
    z = normal(3, 2, 11, 13, dtype=torch.float32)
    z[0, 0, 3, 3], z[1, 1, 4:8] = torch.nan, -torch.inf
    z = z.contiguous(memory_format=layout)
    found, expected = max_pool2d(z, *window), torch.ops.aten.max_pool2d.default(z, *window)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
