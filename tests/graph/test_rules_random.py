"""Operations that draw: base and perturbed queries share the draw, and it is the one that the module itself makes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from torch import nn

DRAWS: dict[str, Op] = {
    "dropout": lambda z: F.dropout(z, 0.4),
    "dropout_flat": lambda z: F.dropout(z.flatten(1), 0.4),
    "dropout_after_permute": lambda z: F.dropout(z.permute(0, 2, 3, 1), 0.4),
    "dropout_nothing": lambda z: F.dropout(z, 0.0),
    "dropout_eval": lambda z: F.dropout(z, 0.4, training=False),
    "dropout_module": nn.Dropout(0.3),
    "dropout_channels": lambda z: F.dropout2d(z, 0.4),
    "alpha_dropout": lambda z: F.alpha_dropout(z, 0.4, training=True),
    "noise": lambda z: z + torch.randn_like(z),
    "uniform_noise": lambda z: z * torch.rand_like(z),
    "new_noise": lambda z: z * torch.randn(2, 4, 6, 5, dtype=torch.float64),
    "coins": lambda z: z * torch.bernoulli(torch.full_like(z, 0.3)),
    "stochastic_depth": lambda z: z * torch.empty(2, 1, 1, 1, dtype=z.dtype).bernoulli_(0.5),
    "permutation": lambda z: z[:, torch.randperm(4)],
}


@pytest.mark.parametrize("ops", groups(DRAWS))
def test_draw(ops: dict[str, Op]) -> None:
    check_each(ops)


def test_dropping_everything() -> None:
    """Alone: the exported operation draws where the module does not, which shifts later draws (see the limits)."""
    check_each({"dropout_everything": lambda z: F.dropout(z, 1.0) + z})
