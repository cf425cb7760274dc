import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from patients import LOSS, batch, cube, healthy
from torch import Tensor

import deepzero as dz
from deepzero import stopwatch
from deepzero.coordinates import Coordinates, StepContext
from deepzero.doctor import LoopCosts, forecast
from deepzero.estimator import Estimator
from deepzero.evaluators.costs import ChunkCost, CostTable
from deepzero.objective import parameters_of
from deepzero.stencils import Stencil

TABLE = CostTable(
    base=0.5,
    workers=2,
    parameters={
        name: ChunkCost(fixed=0.1, each=each, chunk=4, bytes=size)
        for name, each, size in zip(
            ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias"),
            range(1, 6),
            range(10, 60, 10),
            strict=True,
        )
    },
    base_bytes=1000,
)
SPARSE = Coordinates({"0.weight": torch.arange(10), "3.bias": torch.arange(2)})


@pytest.fixture
def tabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dz.PropagationEvaluator, "costs", lambda *_, **__: TABLE)


def predict(zo: Estimator, arguments: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    perturbations = zo.directions(*arguments)
    return forecast.forecast(zo, arguments, perturbations, query_seconds=1e-4)


@pytest.mark.usefixtures("tabled")
@pytest.mark.parametrize(("stencil", "nodes"), [(dz.FORWARD, 1), (dz.CENTRAL, 2)])
def test_a_long_step_is_added_up_from_the_cost_table(stencil: Stencil, nodes: int) -> None:
    zo = dz.CGE(healthy(), loss=LOSS, sparsity=SPARSE, stencil=stencil)
    found, estimate = predict(zo, batch())
    assert found.method == "cost table"
    assert estimate is None
    assert found.queries == 1 + nodes * 12
    assert found.seconds_per_step == TABLE.seconds_per_step({"0.weight": 10, "3.bias": 2}, nodes=nodes)
    assert found.base_seconds + sum(layer.seconds for layer in found.layers) == pytest.approx(found.seconds_per_step)
    assert [(layer.name, layer.coordinates) for layer in found.layers] == [("0.weight", 10), ("3.bias", 2)]
    assert found.memory == 1000 + 2 * max(4 * 10, 2 * 50)
    assert found.memory_budget == zo.evaluator.propagation.memory_budget


@pytest.mark.usefixtures("tabled")
def test_an_epoch_is_its_steps_and_what_the_loop_does_besides() -> None:
    loop = LoopCosts(steps_per_epoch=30, step_overhead=0.25, epoch_overhead=7.0, epochs=3)
    found = predict(dz.CGE(healthy(), loss=LOSS, sparsity=SPARSE), batch())[0].with_loop(loop)
    assert found.seconds_per_epoch == pytest.approx(30 * (found.seconds_per_step + 0.25) + 7.0)
    assert found.loop == loop


def test_a_short_step_is_timed_as_a_whole() -> None:
    zo = dz.CGE(healthy(), loss=LOSS)
    found, estimate = predict(zo, batch())
    assert found.method == "timed"
    assert found.queries == estimate.queries == 1 + sum(p.numel() for p in parameters_of(zo.objective).values())
    assert {layer.name for layer in found.layers} == set(parameters_of(zo.objective))
    assert 0 < found.memory < found.memory_budget
    assert (zo.step, zo.queries) == (0, 0)


def test_estimates_are_timed_at_consecutive_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    steps = []

    class Spy:
        def coordinates(self, context: StepContext) -> Coordinates:
            steps.append(context.step)
            return SPARSE

    zo = dz.CGE(healthy(), loss=LOSS, sparsity=Spy())
    zo.step = 5
    seconds, _ = forecast.time_estimates(zo, batch())
    assert seconds == 0.5
    assert steps == list(range(5, 12))  # one to warm up, then until three seconds are full
    assert zo.step == 5


def test_black_boxes_and_random_directions_are_timed_too() -> None:
    found, _ = predict(dz.CGE(cube(), stencil=dz.CENTRAL), ())
    assert (found.queries, found.method, found.memory) == (5, "timed", None)
    assert [(layer.name, layer.coordinates) for layer in found.layers] == [("w", 2)]
    found, _ = predict(dz.RGE(healthy(), loss=LOSS, queries=6), batch())
    assert (found.queries, found.layers) == (7, ())


def test_a_long_step_without_a_table_is_queries_times_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "median_seconds", lambda function, repeats: 10.0)
    found, estimate = predict(dz.CGE(cube()), ())
    assert estimate is None
    assert found.method == "one query"
    assert found.seconds_per_step == pytest.approx(10.0)
