"""A few of a step's directions, of every kind."""

from typing import Any

import numpy as np
import pytest
import torch
from patients import LOSS, batch, healthy
from torch import Tensor

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.doctor.direction_samples import sample, slopes_along
from deepzero.objective import parameters_of


def test_samples_are_spread_over_the_parameters() -> None:
    zo = dz.CGE(healthy(), loss=LOSS)
    whole = zo.directions(*batch())
    few = sample(whole, 12, seed=0)
    assert {name: len(index) for name, index in few.coordinates.items()} == dict.fromkeys(
        parameters_of(zo.objective), 2
    )
    assert len(sample(whole, 3, seed=0)) == 3
    assert torch.equal(sample(whole, 12, seed=0).coordinates["0.weight"], few.coordinates["0.weight"])


def test_slopes_along_random_directions_are_products_with_the_gradient() -> None:
    zo = dz.RGE(healthy(), loss=LOSS, queries=5)
    few = sample(zo.directions(*batch()), 3, seed=0)
    gradients = {name: torch.ones_like(p).double() for name, p in parameters_of(zo.objective).items()}
    expected = [sum(float(part.double().sum()) for part in few.direction(k).values()) for k in range(3)]
    assert slopes_along(few, gradients).tolist() == pytest.approx(expected)


def test_the_steepest_coordinates_are_chosen_where_a_gradient_is_known() -> None:
    zo = dz.CGE(healthy(), loss=LOSS)
    gradients = {name: torch.zeros_like(p) for name, p in parameters_of(zo.objective).items()}
    gradients["0.weight"][0, 2], gradients["3.bias"][1] = 1.0, -2.0
    few = sample(zo.directions(), 3, seed=0, gradients=gradients)
    assert {name: index.tolist() for name, index in few.coordinates.items()} == {"0.weight": [2], "3.bias": [1]}
    gradients["0.weight"].zero_(), gradients["3.bias"].zero_()
    assert len(sample(zo.directions(), 3, seed=0, gradients=gradients)) == 3


class Diagonal:
    """Directions of one's own: all parameters moved alike, with no method but those of the protocol."""

    def __len__(self) -> int:
        return 1

    def displace(self, parameters: dict[str, Tensor], k: int, offset: float) -> dict[str, Tensor]:
        return {name: value + offset for name, value in parameters.items()}

    def displacement(self, k: Any) -> None:
        raise NotImplementedError

    def taken(self, parameters: dict[str, Tensor], offsets: list[float]) -> Tensor:
        return self.nominal(offsets)

    def nominal(self, offsets: list[float]) -> Tensor:
        return torch.tensor(list(offsets), dtype=torch.float64).unsqueeze(1)

    def combine(self, slopes: Tensor, dtype: Any) -> dict[str, Tensor]:
        return {"x": slopes.expand(3) / 3}

    def describe(self, k: Any) -> Any:
        return "the diagonal"


class DiagonalProbes:
    def draw(self, context: StepContext) -> Diagonal:
        return Diagonal()

    def state(self) -> Any:
        return {"probes": "diagonal"}


def test_directions_of_ones_own_are_examined_as_they_are() -> None:
    whole = Diagonal()
    assert sample(whole, 5, seed=0) is whole
    assert slopes_along(whole, {"x": torch.tensor([1.0, 2.0, 3.0])}).tolist() == [6.0]
    box = dz.BlackBox(lambda x: float((x**2).sum()), np.array([1.0, 2.0, 3.0]))
    zo = dz.Estimator(box, probes=DiagonalProbes(), evaluator=dz.SequentialEvaluator(), stencil="central")
    found = dz.diagnose(zo)
    assert found.healthy
    assert found.forecast.layers == ()
    assert found.step.configured_error < 1e-6
