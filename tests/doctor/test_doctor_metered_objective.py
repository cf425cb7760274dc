"""Queries that are counted, timed and bounded, and whose failures are reported."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from patients import cube

import deepzero as dz
from deepzero.doctor.metered_objective import MeteredObjective
from deepzero.errors import QueryBudgetError
from deepzero.objective import parameters_of


def ask(metered: MeteredObjective, **moved: Any) -> float | None:
    parameters = {name: value.clone() for name, value in parameters_of(metered).items()}
    for name, change in moved.items():
        parameters[name] += torch.tensor(change)
    return float(metered.evaluate(parameters, (), seed=0).loss)


def test_answers_are_the_objectives_and_are_counted() -> None:
    metered = MeteredObjective(cube(), 3)
    assert [ask(metered), ask(metered, w=[1.0, 0.0])] == [9.0, 16.0]
    assert (metered.queries, metered.remaining, len(metered.seconds)) == (2, 1, 2)
    assert metered.failures == []
    assert metered.drawn == set()


def test_what_exceeds_the_limit_is_not_asked() -> None:
    calls = []
    metered = MeteredObjective(dz.BlackBox(lambda x: float(calls.append(1) or 0.0), np.zeros(1)), 2)
    ask(metered), ask(metered)
    with pytest.raises(QueryBudgetError, match="may make 2 queries, and they are spent"):
        ask(metered)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ([0.0, 0.0, 0.0, 0.0], "at the parameters as they are"),
        ([0.0, 0.5, 0.0, 0.0], r"x\[1\] moved by 0.5"),
        ([1.0, 0.0, 0.0, -2.0], r"x\[0\] moved by 1, x\[3\] moved by -2"),
        ([1.0, 2.0, 3.0, 4.0], r"many entries moved, x\[0\] moved by 1 first"),
    ],
)
def test_a_failure_is_nan_and_told_with_its_query(change: list[float], where: str) -> None:
    def fails(x: np.ndarray[Any, Any]) -> None:
        raise RuntimeError("out of\n reach")

    metered = MeteredObjective(dz.BlackBox(fails, np.zeros(4)), 5)
    assert np.isnan(ask(metered, x=change))
    (failure,) = metered.failures
    assert failure.startswith("query 1 (")
    assert failure.endswith("): RuntimeError: out of reach")
    with pytest.raises(AssertionError, match=where):
        raise AssertionError(failure)


def test_what_is_no_number_is_a_failure_too() -> None:
    metered = MeteredObjective(dz.BlackBox(lambda x: "three", np.zeros(1)), 5)
    assert np.isnan(ask(metered))
    assert "fn must return one number" in metered.failures[0]


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (np.random.normal, "numpy"),
        (random.random, "python"),
        (lambda: float(torch.rand(())), "torch"),
    ],
)
def test_draws_from_global_generators_are_seen(draw: Callable[..., Any], name: str) -> None:
    before = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    try:
        metered = MeteredObjective(dz.BlackBox(lambda x: draw(), np.zeros(1)), 5)
        ask(metered)
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])
        torch.set_rng_state(before[2])
    assert metered.drawn == {name}
