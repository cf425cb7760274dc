"""The simulation of many workers: what it must say where the answer is known."""

import math

import pytest

from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Job
from deepzero.measure.simulated_workers import Machine, simulate

JOBS = [Job(0, 10 * k, 10 * (k + 1)) for k in range(64)]


def machine(**changes: float) -> Machine:
    values = {"base": 0.0, "latency": 0.0, "bandwidth": math.inf} | changes
    return Machine(costs={"query": 0.1}, **values)


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_without_base_and_latency_the_speed_up_is_the_number_of_workers(workers: int) -> None:
    forecast = simulate(JOBS, machine(), workers)
    assert forecast.speed_up == pytest.approx(workers)
    assert forecast.imbalance == pytest.approx(1)
    assert forecast.efficiency == pytest.approx(1)


def test_no_step_is_shorter_than_its_longest_job() -> None:
    forecast = simulate(JOBS, machine(), 1000)
    assert forecast.seconds == pytest.approx(1.0)
    assert forecast.imbalance == pytest.approx(1000 / 64)


def test_the_base_forward_is_everybodys() -> None:
    assert simulate(JOBS, machine(base=2.0), 64).seconds == pytest.approx(3.0)
    assert simulate(JOBS, machine(base=2.0), 64).speed_up == pytest.approx(66 / 3)


def test_latency_grows_with_the_workers_and_traffic_with_the_queries() -> None:
    one, many = (
        simulate(JOBS, machine(latency=1e-3, bandwidth=512.0), 1),
        simulate(JOBS, machine(latency=1e-3, bandwidth=512.0), 32),
    )
    assert one.exchange == 0
    assert many.exchange == pytest.approx(32e-3 + 8 * 640 / 512)


def test_workers_are_counted() -> None:
    with pytest.raises(InvalidInputError, match="workers must be an integer of at least 1"):
        simulate(JOBS, machine(), 0)
