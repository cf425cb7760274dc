"""Random directions are regenerated from ``(seed, step, k)``, never stored, and independent of the global generator."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from oracle import nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.errors import InvalidInputError
from deepzero.probes import DISTRIBUTIONS, RandomPerturbations, RandomProbes

PARAMETERS = {"w": torch.zeros(40, 30), "b": torch.zeros(17, dtype=torch.float64), "s": torch.zeros(())}
SIZE = sum(p.numel() for p in PARAMETERS.values())


@pytest.fixture(params=sorted(DISTRIBUTIONS))
def distribution(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param


def directions(distribution: str, queries: int = 8, seed: int = 0) -> RandomPerturbations:
    return RandomPerturbations(queries, distribution, seed, PARAMETERS)


def flat(direction: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.double().reshape(-1) for part in direction.values()])


def test_directions_are_regenerated_bitwise(distribution: str) -> None:
    torch.randn(3, generator=torch.Generator())
    first, again = directions(distribution), directions(distribution)
    for k in (3, 0, 7):
        assert all(torch.equal(first.direction(k)[name], again.direction(k)[name]) for name in PARAMETERS)


def test_directions_do_not_depend_on_the_global_generator(distribution: str) -> None:
    expected = flat(directions(distribution).direction(2))
    with torch.random.fork_rng():
        torch.rand(100)
        assert torch.equal(flat(directions(distribution).direction(2)), expected)
    with nothing_changes():
        directions(distribution).direction(2)


def test_directions_differ(distribution: str) -> None:
    probe = directions(distribution)
    others = [probe.direction(1), directions(distribution, seed=1).direction(0)]
    assert not any(torch.equal(flat(probe.direction(0)), flat(other)) for other in others)


def test_directions_keep_shape_and_dtype(distribution: str) -> None:
    direction = directions(distribution).direction(0)
    assert {name: (d.shape, d.dtype) for name, d in direction.items()} == {
        n: (p.shape, p.dtype) for n, p in PARAMETERS.items()
    }


def test_the_law_of_the_entries() -> None:
    gaussian = flat(directions("gaussian").direction(0))
    assert abs(float(gaussian.mean())) < 5 / math.sqrt(SIZE)
    assert abs(float(gaussian.square().mean()) - 1) < 5 * math.sqrt(2 / SIZE)
    assert abs(float(gaussian.pow(4).mean()) - 3) < 5 * math.sqrt(96 / SIZE)
    rademacher = flat(directions("rademacher").direction(0))
    assert set(rademacher.tolist()) == {-1.0, 1.0}
    assert abs(float(rademacher.mean())) < 5 / math.sqrt(SIZE)
    sphere = flat(directions("sphere").direction(0))
    assert float(sphere.norm()) == pytest.approx(1, abs=1e-6)


def test_stacks_are_the_directions(distribution: str) -> None:
    probe = directions(distribution)
    stacked = probe.stack(2, 5)
    for row, k in enumerate(range(2, 5)):
        assert all(torch.equal(stacked[name][row], part) for name, part in probe.direction(k).items())


def test_displacing(distribution: str) -> None:
    probe = directions(distribution)
    moved = probe.displace(PARAMETERS, 4, 0.5)
    assert all(torch.equal(moved[name], 0.5 * part) for name, part in probe.direction(4).items())
    assert not PARAMETERS["w"].any()


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_combining_is_the_weighted_sum(distribution: str, dtype: torch.dtype | None) -> None:
    probe = directions(distribution)
    slopes = torch.linspace(-1, 2, 8, dtype=torch.float64)
    scale = (SIZE if distribution == "sphere" else 1) / 8
    found = probe.combine(slopes, dtype)
    for name, like in PARAMETERS.items():
        expected = scale * sum(slope * probe.direction(k)[name].double() for k, slope in enumerate(slopes))
        assert found[name].dtype == like.dtype
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_accumulation_in_float64_is_more_accurate() -> None:
    probe = RandomPerturbations(600, "gaussian", 0, {"w": torch.zeros(50, dtype=torch.float32)})
    slopes = torch.ones(600, dtype=torch.float64)
    exact = sum(probe.direction(k)["w"].double() for k in range(600)) / 600
    errors = [float((probe.combine(slopes, d)["w"].double() - exact).norm()) for d in (torch.float32, torch.float64)]
    assert errors[1] < errors[0] / 2


def test_a_probe_draws_anew_at_each_step() -> None:
    objective = dz.NetworkObjective(nn.Linear(3, 2), nn.functional.mse_loss)
    drawn = [RandomProbes(2, seed=0).draw(StepContext(step, 0, objective, ())).direction(0) for step in (0, 0, 1)]
    assert torch.equal(flat(drawn[0]), flat(drawn[1]))
    assert not torch.equal(flat(drawn[0]), flat(drawn[2]))


def test_the_state_names_everything_the_directions_depend_on() -> None:
    assert RandomProbes(5, "sphere", 3).state() == {
        "probes": "random",
        "queries": 5,
        "distribution": "sphere",
        "seed": 3,
    }


def test_descriptions() -> None:
    assert directions("sphere").describe(3) == "sphere direction 3"


@pytest.mark.parametrize("queries", [0, -1, 2.5, True, "many"])
def test_bad_queries(queries: object) -> None:
    with pytest.raises(InvalidInputError, match="queries must be an integer of at least 1"):
        RandomProbes(queries)  # type: ignore[arg-type]


def test_bad_distribution() -> None:
    with pytest.raises(
        InvalidInputError, match="distribution must be one of gaussian, rademacher, sphere; got 'normal'"
    ):
        RandomProbes(2, "normal")
