"""The loss on a plane: equal to the formula on a quadratic, whatever the objective; nothing is left changed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepzero.doctor.surface import loss_surface
from deepzero.errors import InvalidInputError
from deepzero.objective import BlackBox, NetworkObjective

CENTRE = {"a": torch.tensor([1.0, -2.0], dtype=torch.float64), "b": torch.tensor([[0.5]], dtype=torch.float64)}
CURVATURE = 3.0


def quadratic(parameters: dict[str, torch.Tensor]) -> float:
    """1/2 h |w|^2 + 1: at every point of the plane a closed formula, since the directions are orthonormal."""
    return 1.0 + 0.5 * CURVATURE * sum(float(torch.as_tensor(p).square().sum()) for p in parameters.values())


def test_values_on_a_quadratic_are_the_formula() -> None:
    objective = BlackBox(quadratic, {name: value.clone() for name, value in CENTRE.items()})
    gradient = {name: CURVATURE * value for name, value in CENTRE.items()}
    found = loss_surface(objective, (), gradient, radius=0.5, points=5, seed=3)
    norm = math.sqrt(5.25)
    assert found.distances == pytest.approx([-0.5, -0.25, 0.0, 0.25, 0.5])
    assert found.gradient_norm == pytest.approx(CURVATURE * norm)
    assert found.weight_norm == pytest.approx(norm)
    for j, b in enumerate(found.distances):
        for i, a in enumerate(found.distances):
            # |w + a w/|w| + b d|^2 with d at right angles to w
            assert found.losses[j][i] == pytest.approx(1.0 + 0.5 * CURVATURE * ((norm + a) ** 2 + b**2), rel=1e-12)
    assert found.slope == pytest.approx(found.gradient_norm)  # exact on a quadratic


def test_a_gradient_of_a_part_leaves_the_rest_where_it_is_along_it() -> None:
    seen = []

    def spied(parameters: dict[str, torch.Tensor]) -> float:
        seen.append({name: torch.as_tensor(value).clone() for name, value in parameters.items()})
        return quadratic(parameters)

    objective = BlackBox(spied, {name: value.clone() for name, value in CENTRE.items()})
    loss_surface(objective, (), {"b": torch.tensor([[2.0]])}, radius=1.0, points=3)
    assert len(seen) == 9
    for place, parameters in zip((-1.0, 0.0, 1.0), seen[3:6], strict=True):  # the row through the weights
        assert torch.equal(torch.as_tensor(parameters["a"]).double(), CENTRE["a"])
        assert float(parameters["b"]) == pytest.approx(0.5 + place)


def test_the_middle_is_the_loss_itself_and_the_network_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    objective = NetworkObjective(model, F.cross_entropy)
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    gradient = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    told: list[tuple[int, int]] = []
    found = loss_surface(objective, (x, y), gradient, points=3, tell=lambda *count: told.append(count))
    again = loss_surface(objective, (x, y), gradient, points=3)
    assert found == again
    assert found != loss_surface(objective, (x, y), gradient, points=3, seed=1)
    assert told == [(k, 9) for k in range(1, 10)]
    assert found.distances[-1] == pytest.approx(0.1 * found.weight_norm)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    wider = loss_surface(objective, (x, y), gradient, points=5, radius=1.0)
    assert wider.losses[2][2] == found.losses[1][1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"points": 4}, "points must be odd"),
        ({"points": 1}, "points must be an integer of at least 3"),
        ({"radius": 0.0}, "radius must be a finite number above 0"),
        ({"gradient": {"a": torch.zeros(2)}}, "its norm is 0"),
        ({"gradient": {"a": torch.tensor([float("nan"), 0.0])}}, "its norm is nan"),
    ],
    ids=["even", "one", "radius", "zero", "nan"],
)
def test_what_cannot_be_measured(change: dict[str, Any], expected: str) -> None:
    objective = BlackBox(quadratic, {name: value.clone() for name, value in CENTRE.items()})
    with pytest.raises(InvalidInputError, match=expected):
        loss_surface(objective, (), **{"gradient": CENTRE, **change})


def test_a_single_parameter_makes_no_plane() -> None:
    objective = BlackBox(quadratic, {"a": torch.tensor([1.0], dtype=torch.float64)})
    with pytest.raises(InvalidInputError, match="at least two parameters"):
        loss_surface(objective, (), {"a": torch.tensor([1.0])})
