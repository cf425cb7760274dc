"""The parts of an estimate that an estimator gives one by one: directions, queries, slopes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import nn

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.objective import Evaluation
from deepzero.probes import CoordinatePerturbations, RandomPerturbations

X, Y = normal(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])


def square(x: np.ndarray[Any, Any]) -> float:
    return float((x**2).sum())


def network() -> nn.Module:
    return initialize(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)))


@pytest.mark.parametrize("stencil", ["forward", "central"])
@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
def test_an_estimate_is_its_slopes_combined(make: Any, stencil: str) -> None:
    options = {"queries": 5} if make is dz.RGE else {}
    zo = make(network(), loss=F.cross_entropy, stencil=stencil, seed=3, **options)
    directions = zo.directions(X, Y)
    found, estimate = zo.slopes(directions, (X, Y)), zo.estimate(X, Y)
    gradients = directions.combine(found.values, None)
    assert all(torch.equal(gradient, estimate.gradients[name]) for name, gradient in gradients.items())
    assert torch.equal(found.loss, estimate.loss)
    assert estimate.queries == zo.cost(directions)
    assert found.differences.shape == (len(zo.stencil.nodes), len(directions))


def test_slopes_at_another_step_size_and_with_another_stencil() -> None:
    zo = dz.CGE(dz.BlackBox(square, np.array([1.0, -2.0])), step_size=0.25)
    directions = zo.directions()
    assert zo.slopes(directions).values.tolist() == [2.25, -3.75]
    assert zo.slopes(directions, step_size=0.5).values.tolist() == [2.5, -3.5]
    assert zo.slopes(directions, stencil="central").values.tolist() == [2.0, -4.0]


def test_slopes_along_some_of_the_directions_are_those_of_all() -> None:
    zo = dz.CGE(network(), loss=F.cross_entropy, seed=1)
    directions = zo.directions(X, Y)
    assert isinstance(directions, CoordinatePerturbations)
    few = directions.among(dz.Coordinates({"3.bias": torch.tensor([1])}))
    k = directions.start("3.bias") + 1
    assert torch.equal(zo.slopes(few, (X, Y)).values, zo.slopes(directions, (X, Y)).values[k : k + 1])


def test_the_first_random_directions_are_those_of_all() -> None:
    zo = dz.RGE(network(), loss=F.cross_entropy, queries=6, evaluator="sequential", seed=1)
    directions = zo.directions(X, Y)
    few = directions.first(2)
    assert len(few) == 2
    assert len(directions.first(9)) == 6
    assert torch.equal(zo.slopes(few, (X, Y)).values, zo.slopes(directions, (X, Y)).values[:2])


def test_slopes_of_losses_that_are_not_finite_are_given_but_are_no_estimate() -> None:
    zo = dz.CGE(dz.BlackBox(lambda x: float("inf") if x[1] > 0 else float(x[0]), np.zeros(2)), step_size=0.5)
    assert zo.slopes(zo.directions()).values.tolist() == [1.0, float("inf")]
    with pytest.raises(dz.errors.NonFiniteLossError, match=r"at x\[1\] moved by 0.5"):
        zo.estimate()


def test_parts_change_nothing() -> None:
    zo = dz.CGE(network(), loss=F.cross_entropy)
    zo.slopes(zo.directions(X, Y), (X, Y))
    assert (zo.queries, zo.step) == (0, 0)
    assert all(p.grad is None for p in zo.objective.owners().values())


def test_a_copy_is_counted_by_itself_and_may_have_another_evaluator() -> None:
    zo = dz.CGE(dz.BlackBox(square, np.ones(2)), step_size="auto")
    twin = zo.copy(evaluator=dz.SequentialEvaluator())
    twin.backward()
    assert (twin.step, zo.step, zo.queries) == (1, 0, 0)
    assert twin.step_rule.noise is not None
    assert zo.step_rule.noise is None
    assert twin.evaluator is not zo.evaluator
    other = dz.BlackBox(square, np.zeros(2))
    assert zo.copy(objective=other).objective is other


class Subspace(RandomPerturbations):
    """Random directions whose author keeps, under a name of theirs, the coordinates that matter: no unit vectors."""

    coordinates = dz.Coordinates({"3.bias": torch.tensor([0, 1])})


@pytest.mark.parametrize("evaluator", ["auto", "propagation"])
def test_directions_are_unit_vectors_only_if_they_say_so(evaluator: str) -> None:
    model, size = network(), 1e-3
    plain = dz.RGE(model, loss=F.cross_entropy, queries=2, evaluator="sequential", step_size=size)
    directions = Subspace(2, "gaussian", 5, dict(model.named_parameters()))
    exact = plain.slopes(directions, (X, Y)).values
    zo = dz.RGE(model, loss=F.cross_entropy, queries=2, evaluator=evaluator, step_size=size)
    torch.testing.assert_close(zo.slopes(directions, (X, Y)).values, exact, rtol=1e-3, atol=1e-3)


class Bounded:
    """An objective of one's own, whose other attributes have ordinary names and meanings of their author's."""

    steady = True

    def __init__(self) -> None:
        self.x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.function = square

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [("x", self.x)]

    def evaluate(self, parameters: Any, batch: Any, *, seed: int) -> Evaluation:
        return Evaluation(parameters["x"].square().sum())

    def commit(self, buffers: Any) -> None:
        pass

    def constrain(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Values within the bounds of the problem: no business of gradients."""
        return {name: value.clamp(-0.5, 0.5) for name, value in values.items()}


def test_ordinary_names_of_an_objective_are_its_own() -> None:
    gradients = dz.CGE(Bounded(), step_size=1e-6, stencil="central").estimate().gradients
    torch.testing.assert_close(gradients["x"], torch.tensor([2.0, -4.0], dtype=torch.float64))
    with ThreadPoolExecutor(1) as pool, pytest.raises(InvalidInputError, match="is for black boxes"):
        dz.CGE(Bounded(), executor=pool)
