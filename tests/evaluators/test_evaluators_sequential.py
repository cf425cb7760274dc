"""The oracle is a loop: it is checked against arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import normal
from torch import nn

import deepzero as dz
from deepzero.evaluators import StepQueries
from deepzero.objective import parameters_of
from deepzero.probes import CoordinatePerturbations


def test_one_query_per_node_and_direction_and_one_base() -> None:
    calls: list[list[float]] = []

    def fn(params: dict[str, np.ndarray]) -> float:
        calls.append(params["w"].tolist())
        return float((params["w"] ** 2).sum())

    box = dz.BlackBox(fn, {"w": np.array([1.0, 2.0])})
    directions = CoordinatePerturbations(dz.Coordinates({"w": torch.tensor([0, 1])}), parameters_of(box))
    answer = dz.SequentialEvaluator().measure(StepQueries(box, (), directions, [0.5, -0.5], seed=0))
    assert calls == [[1, 2], [1.5, 2], [1, 2.5], [0.5, 2], [1, 1.5]]
    assert float(answer.loss) == 5
    assert answer.differences.tolist() == [[1.25, 2.25], [-0.75, -1.75]]
    assert answer.differences.dtype == torch.float64


def test_all_queries_of_a_step_share_their_draws() -> None:
    """With common dropout masks the loss is linear in the weights: a step of any size gives the same slope."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)).double()
    x, y = normal(6, 4), normal(6, 1, seed=1)
    found = [
        dz.CGE(model, loss=lambda o, t: (o * t).mean(), step_size=step, evaluator=dz.SequentialEvaluator(), seed=2)
        .estimate(x, y)
        .gradients["1.weight"]
        for step in (1e-2, 10.0)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_running_statistics_come_from_the_base_query() -> None:
    model = nn.BatchNorm1d(2).double()
    x = normal(5, 2)
    zo = dz.CGE(model, loss=nn.functional.mse_loss, evaluator=dz.SequentialEvaluator())
    zo.backward(x, x)
    torch.testing.assert_close(model.running_mean, 0.1 * x.mean(0))
    assert int(model.num_batches_tracked) == 1


@pytest.mark.parametrize("state", [{}])
def test_there_is_no_state(state: dict[str, object]) -> None:
    evaluator = dz.SequentialEvaluator()
    assert evaluator.state_dict() == state
    evaluator.load_state_dict(state)
