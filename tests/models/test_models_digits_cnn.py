from __future__ import annotations

import torch
from torch import nn

from deepzero.models import DigitsCNN


def test_most_parameters_are_behind_small_maps() -> None:
    model = DigitsCNN()
    total = sum(p.numel() for p in model.parameters())
    first = sum(p.numel() for layer in model.features[:2] for p in layer.parameters())
    assert total == 4954
    assert first / total < 0.04


def test_convolutions_have_no_bias_and_every_one_is_normalized() -> None:
    layers = list(DigitsCNN().features)
    convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3
    assert all(layers[i].bias is None and isinstance(layers[i + 1], nn.BatchNorm2d) for i in convolutions)


def test_gives_logits() -> None:
    assert DigitsCNN(in_channels=2, num_classes=3)(torch.ones(4, 2, 8, 8)).shape == (4, 3)
