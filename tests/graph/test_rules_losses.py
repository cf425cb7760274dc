"""Losses inside the graph, each as a function of logits ``[2, 4, 6, 5]`` with classes along the second dimension."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from oracle import normal, seeded

LABELS = torch.randint(0, 4, (2, 6, 5), generator=seeded(3))
SOME = LABELS.clone().index_fill_(2, torch.tensor([1, 3]), -100)
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
REAL = normal(2, 4, 6, 5, seed=12)
CHANCES = torch.sigmoid(REAL)


LOSSES: dict[str, Op] = {
    "cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "cross_entropy_flat": lambda z: F.cross_entropy(z.mean((2, 3)), LABELS[:, 0, 0]),
    "cross_entropy_one_sample": lambda z: F.cross_entropy(z.mean((0, 2, 3)), LABELS[0, 0, 0]),
    "cross_entropy_sum": lambda z: F.cross_entropy(z, LABELS, reduction="sum"),
    "cross_entropy_per_sample": lambda z: F.cross_entropy(z, LABELS, reduction="none"),
    "cross_entropy_ignoring": lambda z: F.cross_entropy(z, SOME),
    "cross_entropy_ignoring_one_class": lambda z: F.cross_entropy(z, LABELS, ignore_index=2),
    "cross_entropy_ignoring_per_sample": lambda z: F.cross_entropy(z, SOME, reduction="none"),
    "cross_entropy_smoothing": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1),
    "cross_entropy_smoothing_ignoring": lambda z: F.cross_entropy(z, SOME, label_smoothing=0.1),
    "cross_entropy_weights": lambda z: F.cross_entropy(z, LABELS, weight=WEIGHT),
    "cross_entropy_weights_ignoring": lambda z: F.cross_entropy(z, SOME, weight=WEIGHT, label_smoothing=0.2),
    "cross_entropy_of_probabilities": lambda z: F.cross_entropy(z, CHANCES / CHANCES.sum(1, keepdim=True)),
    "cross_entropy_of_own_labels": lambda z: F.cross_entropy(3 * z, z.argmax(1)),
    "nll": lambda z: F.nll_loss(z.log_softmax(1), LABELS),
    "nll_flat": lambda z: F.nll_loss(z.mean((2, 3)).log_softmax(1), LABELS[:, 0, 0]),
    "nll_sum": lambda z: F.nll_loss(z.log_softmax(1), LABELS, reduction="sum"),
    "nll_per_sample": lambda z: F.nll_loss(z.log_softmax(1), LABELS, reduction="none"),
    "nll_ignoring": lambda z: F.nll_loss(z.log_softmax(1), SOME),
    "nll_weights": lambda z: F.nll_loss(z.log_softmax(1), LABELS, weight=WEIGHT),
    "nll_of_own_labels": lambda z: F.nll_loss((3 * z).log_softmax(1), z.argmax(1)),
    "mse": lambda z: F.mse_loss(z, REAL),
    "mse_sum": lambda z: F.mse_loss(z, REAL, reduction="sum"),
    "mse_per_entry": lambda z: F.mse_loss(z, REAL, reduction="none"),
    "mse_of_target": lambda z: F.mse_loss(REAL, z),
    "mse_of_both": lambda z: F.mse_loss(z, z.tanh()),
    "l1": lambda z: F.l1_loss(z, REAL),
    "smooth_l1": lambda z: F.smooth_l1_loss(z, REAL),
    "huber": lambda z: F.huber_loss(z, REAL, delta=0.5),
    "binary_cross_entropy": lambda z: F.binary_cross_entropy(torch.sigmoid(z), CHANCES),
    "binary_with_logits": lambda z: F.binary_cross_entropy_with_logits(z, CHANCES),
    "kl": lambda z: F.kl_div(z.log_softmax(1), CHANCES / CHANCES.sum(1, keepdim=True), reduction="batchmean"),
    "hinge": lambda z: F.multi_margin_loss(z.mean((2, 3)), LABELS[:, 0, 0]),
}


@pytest.mark.parametrize("ops", groups(LOSSES, size=12))
def test_loss(ops: dict[str, Op]) -> None:
    check_each(ops)
