import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from patients import LOSS, Fluttering, batch, cube, healthy, seeded
from torch import Tensor, nn

import deepzero as dz
from deepzero.doctor.determinism import Determinism, check_determinism, mode_of, with_effect
from deepzero.stencils import Stencil


def check(model: Fluttering | nn.Module) -> Determinism:
    return check_determinism(dz.NetworkObjective(model, LOSS), batch(), seed=0)


def test_a_deterministic_network() -> None:
    found = check(healthy())
    assert found.repeatable
    assert found.noise == 0
    assert not found.depends_on_seed
    assert found.mode == "train"


def test_noise_that_no_seed_governs_is_found_and_measured() -> None:
    found = check(seeded(Fluttering(1e-2)))
    assert not found.repeatable
    assert 1e-4 < found.noise < 1e-1


def test_dropout_depends_on_the_seed_and_is_repeatable() -> None:
    found = check(seeded(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))))
    assert found.repeatable
    assert found.depends_on_seed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(value: float) -> None:
    model = healthy()
    with torch.no_grad():
        model[0].weight[0, 0] = value
    found = check(model)
    assert found.loss is None
    assert found.noise == 0


def test_the_modes() -> None:
    model = healthy()
    assert mode_of(dz.NetworkObjective(model, LOSS)) == "train"
    model[1].eval()
    assert mode_of(dz.NetworkObjective(model, LOSS)) == "mixed"
    assert mode_of(dz.NetworkObjective(model.eval(), LOSS)) == "eval"
    assert mode_of(cube()) is None


@pytest.mark.parametrize(("stencil", "factor"), [(dz.FORWARD, math.sqrt(2)), (dz.CENTRAL, math.sqrt(0.5))])
def test_the_noise_of_a_slope_is_that_of_independent_losses(stencil: Stencil, factor: float) -> None:
    sigma, step = 1e-3, 0.1
    found = with_effect(Determinism(1.0, None, False, sigma, False), stencil, step, torch.tensor([3.0, -4.0]))
    assert found.slope_noise == pytest.approx(factor * sigma / step)
    assert found.relative_slope_noise == pytest.approx(found.slope_noise / math.sqrt(12.5))
    generator = torch.Generator().manual_seed(0)
    base = sigma * torch.randn(1, 20_000, generator=generator, dtype=torch.float64)
    losses = sigma * torch.randn(len(stencil.nodes), 20_000, generator=generator, dtype=torch.float64)
    assert float(stencil.slopes(losses - base, step).std()) == pytest.approx(found.slope_noise, rel=0.05)


@pytest.mark.parametrize("slopes", [torch.zeros(2), None])
def test_no_share_of_slopes_that_are_0_or_unknown(slopes: Tensor | None) -> None:
    found = with_effect(Determinism(1.0, None, False, 1e-3, False), dz.FORWARD, 0.1, slopes)
    assert found.relative_slope_noise is None


class Wrapped:
    """An objective of one's own around a model."""

    def __init__(self, model: Callable[..., Any] | nn.Module) -> None:
        self.model = model


def test_the_mode_of_an_objective_of_ones_own_is_that_of_its_model() -> None:
    assert mode_of(Wrapped(healthy().eval())) == "eval"
    assert mode_of(Wrapped(lambda x: x)) is None
