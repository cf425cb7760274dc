"""Which operations fall back, also inside of a rule; and what the fallback keeps: counts, complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from rule_cases import apply, aten, delta
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph.differences import Dense
from deepzero.graph.rules.fallback import watch_fallbacks

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "binary_with_logits": lambda o, t: F.binary_cross_entropy_with_logits(
        o, torch.sigmoid(t), pos_weight=torch.tensor([2.0, 3.0, 0.5]).double()
    ),
    "kl": lambda o, t: F.kl_div(o.log_softmax(1), t.softmax(1), reduction="batchmean"),
    "poisson": F.poisson_nll_loss,
    "weights": lambda o, t: F.cross_entropy(
        o, t.argmax(1), weight=torch.tensor([2.0, 3.0, 0.5]).double(), label_smoothing=0.1
    ),
    "probabilities": lambda o, t: F.cross_entropy(o, t.softmax(1), label_smoothing=0.1),
    "soft_margin": lambda o, t: F.soft_margin_loss(o, torch.sign(t)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_losses_take_no_fallback_from_the_model_to_the_end(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = initialize(nn.Sequential(nn.Linear(4, 3), nn.Hardswish(), nn.Linear(3, 3)))
    evaluator = dz.PropagationEvaluator(verify=False)
    zo = dz.CGE(model, loss=loss, step_size=1e-3, evaluator=evaluator)
    x, t = normal(5, 4, seed=3), normal(5, 3, seed=4)
    with watch_fallbacks() as met:
        evaluator.workers = 1
        zo.estimate(x, t)
    assert not met
    assert evaluator.program(zo.objective, (x, t)).fallbacks == ()


def test_an_operation_that_falls_back_is_seen() -> None:
    z = normal(2, 3)
    with watch_fallbacks() as met:
        apply(aten.sort.default, (z, Dense(normal(2, 2, 3, seed=1))), 1)
        apply(aten.relu.default, (z, Dense(normal(2, 2, 3, seed=1))))
    assert set(met.values()) == {"aten.sort.default"}
    with watch_fallbacks() as met:
        labels = torch.tensor([0, 1])
        apply(
            aten.cross_entropy_loss.default,
            (z, Dense(normal(2, 2, 3, seed=1))),
            (labels, Dense(torch.zeros(2, 2).long())),
        )
    assert set(met.values()) == {"aten.cross_entropy_loss.default"}


class Accumulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.logcumsumexp(1)


def test_an_estimate_shows_what_fell_back() -> None:
    model = initialize(nn.Sequential(nn.Linear(4, 3), Accumulated()))
    zo = dz.CGE(model, loss=F.mse_loss, evaluator=dz.PropagationEvaluator(verify=False))
    with watch_fallbacks() as met:
        zo.estimate(normal(5, 4, seed=3), normal(5, 3, seed=4))
    assert set(met.values()) == {"aten.logcumsumexp.default"}


@pytest.mark.parametrize("size", [64, 100, 569])
def test_a_zero_one_loss_counts_exactly(size: int) -> None:
    """Every loss difference is a whole number of samples over their number."""
    model = initialize(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), dtype=torch.float32)
    x, y = normal(size, 6, seed=3, dtype=torch.float32), torch.arange(size) % 3
    zo = dz.CGE(
        model,
        loss=lambda o, t: (o.argmax(1) != t).float().mean(),
        step_size=0.1,
        evaluator=dz.PropagationEvaluator(verify=False),
    )
    counts = torch.cat([g.flatten() for g in zo.estimate(x, y).gradients.values()]).double() * 0.1 * size
    assert bool(counts.round().any())
    torch.testing.assert_close(counts, counts.round(), rtol=1e-5, atol=1e-5)


def test_complex_results_of_the_fallback_stay_complex() -> None:
    """They are not rounded to integers."""
    z = torch.complex(normal(3, 3), normal(3, 3, seed=1)) + 3 * torch.eye(3)
    d = 1e-3 * torch.complex(normal(2, 3, 3, seed=2), normal(2, 3, 3, seed=3))
    found = delta(aten.inverse.default, (z, Dense(d)))
    assert found.is_complex()
    torch.testing.assert_close(found, torch.stack([torch.linalg.inv(z + row) for row in d]) - torch.linalg.inv(z))
