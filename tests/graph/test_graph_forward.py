"""Runs of a graph with values whose memory is laid out otherwise than that of the values it was exported for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import deepzero as dz


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
