from __future__ import annotations

import pytest
import torch
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.models import MLP


def test_layers_and_parameters() -> None:
    model = MLP(12, hidden=(5, 4), num_classes=3, layer_norm=True, activation="gelu")
    kinds = [type(layer) for layer in model.hidden]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.GELU] * 2
    assert sum(p.numel() for p in model.parameters()) == (12 * 5 + 5 + 10) + (5 * 4 + 4 + 8) + (4 * 3 + 3)
    assert model(torch.ones(2, 3, 2, 2)).shape == (2, 3)


def test_no_hidden_layer_is_a_linear_model() -> None:
    model = MLP(6, hidden=(), num_classes=2)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), model.fc(x))


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="relu, gelu, silu, tanh"):
        MLP(4, activation="swish")
    with pytest.raises(InvalidInputError, match=r"hidden\[1\]"):
        MLP(4, hidden=(3, -1))
    with pytest.raises(InvalidInputError, match="in_features"):
        MLP(0)
