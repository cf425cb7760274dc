"""The step that noise and curvature ask for, against functions whose noise and derivatives are known."""

import math

import pytest
import torch

import deepzero as dz
from deepzero.doctor.noise import repeats_for, slope_size, step_for_noise
from deepzero.doctor.sweep import STEPS

SLOPE, BEND, THIRD = 3.0, 4.0, 50.0
DIRECTIONS = 4000


def value(t):
    return SLOPE * t + BEND / 2 * t**2 + THIRD / 6 * t**3


def slopes(steps, sigma, *, directions=DIRECTIONS):
    """Forward and central slopes of many directions of the same function, each loss with noise of its own."""
    generator = torch.Generator().manual_seed(0)

    def loss(t):
        return value(t) + sigma * torch.randn(directions, generator=generator, dtype=torch.float64)

    base = loss(0.0)
    up, down = [loss(h) for h in steps], [loss(-h) for h in steps]
    forward = torch.stack([(u - base) / h for u, h in zip(up, steps, strict=True)])
    central = torch.stack([(u - d) / (2 * h) for u, d, h in zip(up, down, steps, strict=True)])
    return {("box", "forward"): forward, ("box", "central"): central}


def choose(sigma, stencil, configured=1e-3, **options):
    return step_for_noise(
        slopes(STEPS, sigma, **options), STEPS, noise=sigma, evaluator="box", stencil=stencil, configured=configured
    )


def test_the_forward_step_is_that_of_more_and_wild():
    sigma = 1e-6
    found = choose(sigma, "forward")
    assert found.step_size == pytest.approx(8**0.25 * math.sqrt(sigma / BEND), rel=0.3)
    assert found.low < found.step_size < found.high


def test_the_central_step_is_that_of_gill_and_others():
    sigma = 1e-6
    found = choose(sigma, "central")
    assert found.step_size == pytest.approx((3 * sigma / THIRD) ** (1 / 3), rel=0.3)


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_the_error_that_is_promised_is_the_error_that_is_made(stencil):
    sigma = 1e-6
    found = choose(sigma, stencil)
    for step, promised in ((found.step_size, found.error), (1e-3, found.configured_error)):
        made = slopes([step], sigma)["box", stencil][0]
        assert promised == pytest.approx(float((made - SLOPE).square().mean().sqrt()) / SLOPE, rel=0.1)


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_no_other_step_is_better(stencil):
    found = choose(1e-6, stencil)
    for factor in (0.5, 2.0):
        assert choose(1e-6, stencil, configured=factor * found.step_size).configured_error > found.error


def test_few_directions_are_enough():
    assert choose(1e-6, "forward", directions=3).step_size == pytest.approx(8**0.25 * math.sqrt(1e-6 / BEND), rel=0.5)


def test_a_curvature_that_is_not_seen_means_the_largest_step():
    found = choose(0.05, "forward")
    assert found.step_size == STEPS[-1]
    assert "too small to be seen" in found.reason
    assert "the largest step that was tried" in found.reason


def test_noise_that_hides_every_slope_leaves_no_step():
    assert choose(10.0, "forward") is None
    assert choose(10.0, "central") is None


def test_the_share_of_noise_is_no_part_of_the_slopes():
    """At the first step that tells a slope, noise is up to a fifth of it, which would add 2 %."""
    sigma, steps = 0.1, [0.12]
    central = slopes(steps, sigma)["box", "central"]
    exact = SLOPE + THIRD / 6 * steps[0] ** 2
    assert float(central.square().mean().sqrt()) > 1.01 * exact
    assert slope_size(central, steps, sigma) == pytest.approx(exact, rel=5e-3)


def test_a_step_in_the_noise_is_not_as_good_and_one_near_the_best_is():
    assert not choose(1e-6, "forward", configured=1e-7).as_good
    assert choose(1e-6, "forward", configured=2e-3).as_good


def test_a_stencil_of_ones_own_has_no_formula():
    own = dz.Stencil("own", nodes=(2.0,), weights=(0.5,), order=1)
    assert choose(1e-6, own.name) is None


def test_losses_that_are_not_finite_are_passed_over():
    table = slopes(STEPS, 1e-6)
    for rows in table.values():
        rows[-1] = math.nan
        rows[0] = math.inf
    found = step_for_noise(table, STEPS, noise=1e-6, evaluator="box", stencil="forward", configured=1e-3)
    assert found.step_size == pytest.approx(8**0.25 * math.sqrt(1e-6 / BEND), rel=0.3)


def test_repeats_bring_the_error_down_to_a_tenth():
    found = choose(0.05, "forward")
    count = repeats_for(found)
    assert count > 1
    assert found.error / math.sqrt(count) <= 0.1 < found.error / math.sqrt(count - 1)
