"""Certification against hand-computed cases, and against a linear classifier whose radii are known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from deepzero.errors import InvalidInputError
from deepzero.tasks.defense.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothed,
    alpha_power,
    certified_accuracy,
    largest_radius,
    lower_bound,
    radius_of,
    require_reachable,
)

ALPHA = 0.001


def linear(weight: Tensor) -> Smoothed:
    """Two classes, told apart by the sign of <w, x>: the smoothed classifier is the same, its radius |<w, x>| / |w|."""

    def scores(x: Tensor) -> Tensor:
        side = x.flatten(1) @ weight
        return torch.stack([-side, side], dim=1)

    return Smoothed(scores, sigma=0.5, classes=2)


@pytest.mark.parametrize(
    ("hits", "trials", "expected"),
    [(100, 100, ALPHA ** (1 / 100)), (10_000, 10_000, ALPHA ** (1 / 10_000)), (1, 1, ALPHA), (0, 50, 0.0)],
)
def test_the_bound_where_it_has_a_closed_form(hits: int, trials: int, expected: float) -> None:
    assert lower_bound(hits, trials, ALPHA) == pytest.approx(expected, rel=1e-9)


def test_the_bound_is_the_root_of_the_binomial_tail() -> None:
    """P[X >= hits] at the bound is alpha: the definition of Clopper and Pearson."""
    bound = lower_bound(80, 100, ALPHA)
    tail = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(80, 101))
    assert tail == pytest.approx(ALPHA, rel=1e-9)


@pytest.mark.parametrize(("trials", "fewest"), [(100, 66), (1000, 550), (10_000, 5156)])
def test_how_many_hits_it_takes_to_certify_at_all(trials: int, fewest: int) -> None:
    assert lower_bound(fewest, trials, ALPHA) > 0.5
    assert lower_bound(fewest - 1, trials, ALPHA) <= 0.5


def test_a_linear_classifier_is_certified_up_to_its_boundary() -> None:
    """Never beyond it, and close to it: what is lost is the confidence interval."""
    weight = torch.tensor([3.0, 4.0])
    smoothed = linear(weight)
    for number, image in enumerate([[0.3, 0.1], [0.6, 0.5], [-0.4, -0.2]]):
        x = torch.tensor(image)
        true = float((x @ weight).abs() / 5)
        found = smoothed.certify(x, number=number, trials=20_000, alpha=ALPHA)
        assert found.answer == int(float(x @ weight) > 0)
        assert found.radius < true
        p = norm.cdf(true / 0.5)
        interval = 3.3 * math.sqrt(p * (1 - p) / 20_000)
        assert found.radius > 0.5 * norm.ppf(p - 2 * interval)


def test_it_abstains_on_the_boundary() -> None:
    smoothed = linear(torch.tensor([1.0, 0.0]))
    found = smoothed.certify(torch.zeros(2), number=0, trials=1000)
    assert (found.answer, found.radius) == (ABSTAIN, 0.0)
    assert smoothed.predict(torch.zeros(2), number=0, trials=1000) == ABSTAIN
    assert smoothed.predict(torch.tensor([0.5, 0.0]), number=0, trials=1000) == 1


def test_noise_is_a_function_of_the_image_number() -> None:
    smoothed, x = linear(torch.tensor([1.0, 0.0])), torch.tensor([0.2, 0.0])
    first = smoothed.certify(x, number=3, trials=500)
    assert smoothed.certify(x, number=3, trials=500) == first
    assert smoothed.certify(x, number=4, trials=500).hits != first.hits
    small = Smoothed(smoothed.scores, sigma=0.5, classes=2, batch=7)
    assert small.certify(x, number=3, trials=500) == first


@pytest.mark.parametrize(
    ("sigma", "trials", "radius"), [(0.25, 1000, 0.75), (0.5, 1000, 1.3), (0.25, 100, 0.4), (1.0, 10_000, 3.2)]
)
def test_radii_out_of_reach_are_refused_with_what_they_need(sigma: float, trials: int, radius: float) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot be certified with sigma=.*; take N=([\d,]+) or more") as error:
        require_reachable([0.0, radius], sigma, trials, ALPHA)
    needed = alpha_power(float(norm.cdf(radius / sigma)), ALPHA)
    assert f"N={needed:,} or more" in str(error.value)
    require_reachable([radius], sigma, needed, ALPHA)
    with pytest.raises(InvalidInputError):
        require_reachable([radius], sigma, needed - 1, ALPHA)


def test_the_table_of_what_is_reachable() -> None:
    found = [largest_radius(1.0, n, ALPHA) for n in (100, 1000, 10_000, 100_000)]
    assert found == pytest.approx([1.500, 2.463, 3.199, 3.811], abs=1e-3)
    assert radius_of(0.5, 1.0) == 0.0
    assert radius_of(0.4, 1.0) == 0.0


def test_certified_accuracy_counts_what_is_right_and_far_enough() -> None:
    some = [Certificate(2, 0.5, 9, 10, 0.8), Certificate(2, 0.9, 9, 10, 0.8), Certificate(ABSTAIN, 0.0, 5, 10, 0.2)]
    assert certified_accuracy(some, [2, 1, 0], [0.0, 0.5, 0.51]) == [1 / 3, 1 / 3, 0.0]


@pytest.mark.parametrize("options", [{"sigma": 0.0, "classes": 2}, {"sigma": 0.1, "classes": 1}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        Smoothed(lambda x: x, **options)  # type: ignore[arg-type]
