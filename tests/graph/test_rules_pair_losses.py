"""Every loss with a rule by itself: predictions, targets and weights that differ, every reduction, broadcasting."""

from __future__ import annotations

import itertools

import pytest
import torch
from every_kind import groups
from oracle import normal, seeded
from rule_cases import SHAPE, Case, Differs, aten, check_table
from torch import Tensor

Z, T = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
CHANCES = torch.sigmoid(T)
SIDES = torch.where(T > 0, 1.0, -1.0).double()
WEIGHTS = torch.linspace(0.5, 2, 5, dtype=torch.float64)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
NARROW = torch.full(SHAPE, 0.5, dtype=torch.float64) + 0.1 * torch.tanh(Z)


def losses(
    name: str, x: Tensor, t: Tensor, *options: object, trained_target: bool = True, scale: float = 0.3, **named: object
) -> dict[str, Case]:
    """Each reduction, with predictions that differ; and with targets that do, alone and beside the predictions."""
    target = getattr(aten, name).default
    table = {
        f"{name}{options}_{reduction}": Case(
            target, (Differs(x), t, *options, reduction), named, keeps=reduction == 0, scale=scale
        )
        for reduction in (0, 1, 2)
    }
    if trained_target:
        table[f"{name}{options}_target"] = Case(target, (x, Differs(t), *options, 1), named, scale=scale)
        table[f"{name}{options}_both"] = Case(target, (Differs(x), Differs(t, seed=1), *options, 0), named, scale=scale)
    return table


LOSSES = {
    **losses("mse_loss", Z, T),
    **losses("l1_loss", Z, T),
    **losses("smooth_l1_loss", Z, T),
    **losses("huber_loss", Z, T),
    **losses("soft_margin_loss", Z, SIDES),
    **losses("kl_div", Z, CHANCES + 1.5),
    **losses("binary_cross_entropy_with_logits", 3 * Z, CHANCES, None, None),
    **losses("binary_cross_entropy_with_logits", 3 * Z, CHANCES, WEIGHTS, 2 * WEIGHTS),
    **losses("binary_cross_entropy", NARROW, 1 - NARROW, None, scale=0.05),
    **losses("binary_cross_entropy", NARROW, 1 - NARROW, WEIGHTS, scale=0.05),
    **losses("poisson_nll_loss", Z, CHANCES, True, False, 1e-8),
    **losses("poisson_nll_loss", Z, 3 * CHANCES, True, True, 1e-8, trained_target=False),
    **losses("poisson_nll_loss", Z.abs() + 1.5, CHANCES, False, False, 1e-8),
    "mse_rows": Case(aten.mse_loss.default, (Differs(Z), T[0, 0, 0], 0), keeps=True),
    "mse_rows_of_target": Case(aten.mse_loss.default, (Z, Differs(T[:, :, :1]), 1)),
    "l1_column": Case(aten.l1_loss.default, (Differs(Z), T[:, :1], 2)),
    "smooth_l1_beta": Case(aten.smooth_l1_loss.default, (Differs(Z), T, 1, 0.3)),
    "smooth_l1_zero": Case(aten.smooth_l1_loss.default, (Differs(Z), T, 1, 0.0)),
    "huber_delta": Case(aten.huber_loss.default, (Differs(Z), T, 0, 0.3), keeps=True),
    "kl_log": Case(aten.kl_div.default, (Differs(Z), T, 1), {"log_target": True}),
    "kl_log_target": Case(aten.kl_div.default, (Z, Differs(T), 0), {"log_target": True}, keeps=True),
    "kl_log_both": Case(aten.kl_div.default, (Differs(Z), Differs(T, seed=1), 2), {"log_target": True}),
    "kl_zero_target": Case(aten.kl_div.default, (Differs(Z), (CHANCES - 0.5).clamp(min=0))),
    "kl_to_zero": Case(aten.kl_div.default, (Differs(Z), torch.zeros(SHAPE).double(), 0), keeps=True),
    "bce_trained_weight": Case(aten.binary_cross_entropy_with_logits.default, (Differs(Z), CHANCES, Differs(WEIGHTS + 2, seed=1), Differs(WEIGHTS + 3, seed=2))),
    "bce_only_weight": Case(aten.binary_cross_entropy_with_logits.default, (Z, CHANCES, Differs(WEIGHTS + 2))),
    "margin_ranking": Case(aten.margin_ranking_loss.default, (Differs(Z), T, SIDES, 0.3)),
    "margin_ranking_second": Case(aten.margin_ranking_loss.default, (Z, Differs(T), SIDES, 0.3, 0)),
    "margin_ranking_both": Case(aten.margin_ranking_loss.default, (Differs(Z), Differs(T, seed=1), SIDES, 0.3, 2)),
    "hinge_embedding": Case(aten.hinge_embedding_loss.default, (Differs(Z), SIDES)),
}  # fmt: skip


@pytest.mark.parametrize("table", groups(LOSSES, size=40))
def test_loss_of_pairs(table: dict[str, Case]) -> None:
    check_table(table)


LABELS = torch.randint(0, 4, (2, 3, 5), generator=seeded(3))
SOME = LABELS.clone().index_fill_(2, torch.tensor([1, 3]), -100)
SHARES = torch.softmax(T, 1)


def of_labels(x: Tensor, labels: Tensor) -> dict[str, Case]:
    cross, nll = aten.cross_entropy_loss.default, aten.nll_loss_nd.default
    logs = x.log_softmax(1 if x.dim() > 1 else 0)
    table = {}
    for weight, reduction in itertools.product((None, CLASS_WEIGHTS), (0, 1, 2)):
        for smoothing in (0.0, 0.2):
            args = (Differs(x), labels, weight, reduction, -100, smoothing)
            table[f"cross_entropy_{weight is not None}_{reduction}_{smoothing}"] = Case(cross, args)
        table[f"nll_{weight is not None}_{reduction}"] = Case(nll, (Differs(logs), labels, weight, reduction))
    return table


@pytest.mark.parametrize(
    ("x", "labels"),
    [(Z, LABELS), (Z, SOME), (3 * Z[:, :, 0, 0], LABELS[:, 0, 0]), (Z[0, :, 0, 0], LABELS[0, 0, 0])],
    ids=["images", "ignoring", "rows", "one_sample"],
)
def test_cross_entropy_of_labels(x: Tensor, labels: Tensor) -> None:
    check_table(of_labels(x, labels))


PROBABILITIES = {
    f"{weight is not None}_{reduction}_{smoothing}_{which}": Case(
        aten.cross_entropy_loss.default,
        (
            Differs(Z) if which != "target" else Z,
            Differs(SHARES, seed=1) if which != "input" else SHARES,
            weight, reduction, -100, smoothing,
        ),
    )
    for weight in (None, CLASS_WEIGHTS)
    for reduction in (0, 1, 2)
    for smoothing in (0.0, 0.2)
    for which in ("input", "target", "both")
}  # fmt: skip


def test_cross_entropy_of_probabilities() -> None:
    check_table(PROBABILITIES)


def test_labels_and_weights_that_differ_themselves() -> None:
    cross = aten.cross_entropy_loss.default
    check_table(
        {
            "labels": Case(cross, (Differs(Z), Differs(LABELS % 2, seed=1))),
            "weights": Case(cross, (Z, LABELS, Differs(CLASS_WEIGHTS + 1))),
            "nll_weights": Case(aten.nll_loss_nd.default, (Z, LABELS, Differs(CLASS_WEIGHTS + 1))),
        }
    )
