"""Coordinate directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import Always, StepContext
from deepzero.errors import InvalidInputError
from deepzero.probes import CoordinatePerturbations, CoordinateProbes

CHOSEN = dz.Coordinates({"w": torch.tensor([1, 5]), "b": torch.tensor([0])})


@pytest.fixture
def parameters() -> dict[str, Tensor]:
    return {"a": torch.ones(2), "w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0, dtype=torch.float64)}


def test_directions_follow_the_order_of_the_set(parameters: dict[str, Tensor]) -> None:
    directions = CoordinatePerturbations(CHOSEN, parameters)
    assert len(directions) == 3
    assert [directions.locate(k) for k in range(3)] == [("w", 1), ("w", 5), ("b", 0)]
    assert [directions.describe(k) for k in range(3)] == ["w[1]", "w[5]", "b[0]"]
    assert directions.start("b") == 2


def test_displacing_moves_one_entry_and_shares_the_rest(parameters: dict[str, Tensor]) -> None:
    directions = CoordinatePerturbations(CHOSEN, parameters)
    moved = directions.displace(parameters, 1, 0.5)
    assert moved["w"].tolist() == [[0, 1, 2], [3, 4, 5.5]]
    assert moved["a"] is parameters["a"]
    assert parameters["w"][1, 2] == 5
    assert float(directions.displace(parameters, 2, -1.0)["b"]) == 6


def test_displacing_is_row_major_in_any_memory_format() -> None:
    value = torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    directions = CoordinatePerturbations(dz.Coordinates({"w": torch.tensor([5])}), {"w": value})
    assert float(directions.displace({"w": value}, 0, 0.5)["w"][0, 1, 0, 1]) == 5.5


def test_combining_scatters_slopes_and_leaves_zero_elsewhere(parameters: dict[str, Tensor]) -> None:
    slopes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    gradient = CoordinatePerturbations(CHOSEN, parameters).combine(slopes, None)
    assert gradient["w"].tolist() == [[0, 1, 0], [0, 0, 2]]
    assert gradient["a"].tolist() == [0, 0]
    assert float(gradient["b"]) == 3
    assert {name: g.dtype for name, g in gradient.items()} == {name: p.dtype for name, p in parameters.items()}


def test_an_empty_set_has_no_direction(parameters: dict[str, Tensor]) -> None:
    directions = CoordinatePerturbations(dz.Coordinates({}), parameters)
    assert len(directions) == 0
    assert not any(g.any() for g in directions.combine(torch.zeros(0), None).values())


def test_the_set_must_fit(parameters: dict[str, Tensor]) -> None:
    with pytest.raises(InvalidInputError, match="not a trainable parameter"):
        CoordinatePerturbations(dz.Coordinates({"x": torch.tensor([0])}), parameters)


def test_a_probe_asks_its_schedule() -> None:
    objective = dz.NetworkObjective(nn.Linear(3, 2), nn.functional.mse_loss)
    chosen = dz.Coordinates({"weight": torch.tensor([4])})
    directions = CoordinateProbes(Always(chosen)).draw(StepContext(0, 0, objective, ()))
    assert directions.coordinates is chosen
