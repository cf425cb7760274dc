"""The recommended step: from errors that are known, and from functions whose noise and derivatives are known."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import deepzero as dz
from deepzero.doctor import Curve, Point, StepChoice, Sweep
from deepzero.doctor.step_choice import choose_step, repeats_for, slope_size, step_for_noise
from deepzero.doctor.sweep import STEPS, SweptSlopes

CHOICE = StepChoice("propagation", "forward", 1e-5, 1e-6, 1e-4, 1e-6, 5e-3, 0.05, True, "", as_good=True)
SLOPE, BEND, THIRD = 3.0, 4.0, 50.0
DIRECTIONS = 4000


def value(t: float) -> float:
    return SLOPE * t + BEND / 2 * t**2 + THIRD / 6 * t**3


def slopes(steps: Sequence[float], sigma: float, *, directions: int = DIRECTIONS) -> SweptSlopes:
    """Forward and central slopes of many directions of the same function, each loss with noise of its own."""
    generator = torch.Generator().manual_seed(0)

    def loss(t: float) -> Tensor:
        return value(t) + sigma * torch.randn(directions, generator=generator, dtype=torch.float64)

    base = loss(0.0)
    up, down = [loss(h) for h in steps], [loss(-h) for h in steps]
    forward = torch.stack([(u - base) / h for u, h in zip(up, steps, strict=True)])
    central = torch.stack([(u - d) / (2 * h) for u, d, h in zip(up, down, steps, strict=True)])
    return SweptSlopes(list(steps), {("box", "forward"): forward, ("box", "central"): central}, {"box": list(steps)})


def choose(sigma: float, stencil: str, configured: float = 1e-3, **options: Any) -> StepChoice | None:
    return step_for_noise(
        slopes(STEPS, sigma, **options), noise=sigma, evaluator="box", stencil=stencil, configured=configured
    )


def test_the_forward_step_is_that_of_more_and_wild() -> None:
    sigma = 1e-6
    found = choose(sigma, "forward")
    assert found.step_size == pytest.approx(8**0.25 * math.sqrt(sigma / BEND), rel=0.3)
    assert found.low < found.step_size < found.high


def test_the_central_step_is_that_of_gill_and_others() -> None:
    sigma = 1e-6
    found = choose(sigma, "central")
    assert found.step_size == pytest.approx((3 * sigma / THIRD) ** (1 / 3), rel=0.3)


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_the_error_that_is_promised_is_the_error_that_is_made(stencil: str) -> None:
    sigma = 1e-6
    found = choose(sigma, stencil)
    for step, promised in ((found.step_size, found.error), (1e-3, found.configured_error)):
        made = slopes([step], sigma).values["box", stencil][0]
        assert promised == pytest.approx(float((made - SLOPE).square().mean().sqrt()) / SLOPE, rel=0.1)


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_no_other_step_is_better(stencil: str) -> None:
    found = choose(1e-6, stencil)
    for factor in (0.5, 2.0):
        assert choose(1e-6, stencil, configured=factor * found.step_size).configured_error > found.error


def test_few_directions_are_enough() -> None:
    assert choose(1e-6, "forward", directions=3).step_size == pytest.approx(8**0.25 * math.sqrt(1e-6 / BEND), rel=0.5)


def test_a_curvature_that_is_not_seen_means_the_largest_step() -> None:
    found = choose(0.05, "forward")
    assert found.step_size == STEPS[-1]
    assert "too small to be seen" in found.reason
    assert "the largest step that was tried" in found.reason


def test_noise_that_hides_every_slope_leaves_no_step() -> None:
    assert choose(10.0, "forward") is None
    assert choose(10.0, "central") is None


def test_the_share_of_noise_is_no_part_of_the_slopes() -> None:
    """At the first step that tells a slope, noise is up to a fifth of it, which would add 2 %."""
    sigma, steps = 0.1, [0.12]
    central = slopes(steps, sigma).values["box", "central"]
    exact = SLOPE + THIRD / 6 * steps[0] ** 2
    assert float(central.square().mean().sqrt()) > 1.01 * exact
    assert slope_size(central, steps, sigma) == pytest.approx(exact, rel=5e-3)


def test_a_step_in_the_noise_is_not_as_good_and_one_near_the_best_is() -> None:
    assert not choose(1e-6, "forward", configured=1e-7).as_good
    assert choose(1e-6, "forward", configured=2e-3).as_good


def test_a_stencil_of_ones_own_has_no_formula() -> None:
    own = dz.Stencil("own", nodes=(2.0,), weights=(0.5,), order=1)
    assert choose(1e-6, own.name) is None


def test_losses_that_are_not_finite_are_passed_over() -> None:
    table = slopes(STEPS, 1e-6)
    for rows in table.values.values():
        rows[-1] = math.nan
        rows[0] = math.inf
    found = step_for_noise(table, noise=1e-6, evaluator="box", stencil="forward", configured=1e-3)
    assert found.step_size == pytest.approx(8**0.25 * math.sqrt(1e-6 / BEND), rel=0.3)


def test_repeats_bring_the_error_down_to_a_tenth() -> None:
    found = choose(0.05, "forward")
    count = repeats_for(found)
    assert count > 1
    assert found.error / math.sqrt(count) <= 0.1 < found.error / math.sqrt(count - 1)


def made(errors: list[Any], steps: tuple[float, ...] = STEPS) -> Sweep:
    points = tuple(Point(step, error, 0.0) for step, error in zip(steps, errors, strict=True))
    return Sweep("float64 autograd", 0.0, 1, (Curve("propagation", "forward", points),), {})


def test_the_middle_of_the_flat_part_is_recommended() -> None:
    errors = [1.0, 0.3, 0.1, 0.03, 9e-4, 3e-4, 1e-4, 4e-4, 8e-4, 0.01, 0.1, 0.3, 1.0]
    choice = choose_step(made(errors), "propagation", "forward", 1e-1)
    assert (choice.low, choice.step_size, choice.high) == (STEPS[4], STEPS[6], STEPS[8])
    assert choice.error == 1e-4
    assert choice.configured_error == 1.0
    assert f"{STEPS[4]:.1e}" in choice.reason


def test_the_flat_part_is_connected() -> None:
    errors = [1e-4, 1e-4, 0.5, 0.5, 1e-5, 1e-4, 1e-4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    choice = choose_step(made(errors), "propagation", "forward", 1e-3)
    assert (choice.low, choice.high) == (STEPS[4], STEPS[6])


def test_no_step_is_recommended_where_all_are_noise() -> None:
    assert choose_step(made([0.9] * 13), "propagation", "forward", 1e-3) is None
    assert choose_step(made([None] * 13), "propagation", "forward", 1e-3) is None


@pytest.mark.parametrize(
    ("error", "configured", "good"),
    [(1e-6, 0.09, True), (1e-6, 0.11, False), (0.08, 0.15, True), (0.08, 0.17, False), (1e-6, None, False)],
)
def test_a_step_is_as_good_up_to_a_tenth_or_twice_the_best(error: float, configured: float | None, good: bool) -> None:
    assert CHOICE.with_errors(error, configured, 5).as_good == good


def test_a_step_that_vanishes_is_never_as_good() -> None:
    assert not dataclasses.replace(CHOICE, felt=False).with_errors(1e-6, 1e-6, 5).as_good


def test_a_step_with_that_error_loses_at_most_that_share_of_its_descent() -> None:
    """The reason for the limit of a tenth: <g, g + e> >= (1 - |e| / |g|) |g|^2."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        g, e = torch.randn(2, 50, generator=generator, dtype=torch.float64)
        e *= 0.1 * g.norm() / e.norm()
        assert float(g @ (g + e)) >= 0.9 * float(g @ g)
    assert float(g @ (g - 0.1 * g)) == pytest.approx(0.9 * float(g @ g))
