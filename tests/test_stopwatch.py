"""On a clock that only the work moves, and with a device that takes its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deepzero import stopwatch
from deepzero.stopwatch import (
    StageStopwatch,
    Stopwatch,
    Throughput,
    mean_seconds,
    median_seconds,
    seconds_of,
    throughput,
)


class Clock:
    """Seconds that pass only when somebody works; ``pending`` are those that a device still has to work."""

    def __init__(self) -> None:
        self.now, self.pending = 100.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def wait(self) -> None:
        self.now, self.pending = self.now + self.pending, 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    monkeypatch.setattr(stopwatch, "wait_for_devices", made.wait)
    return made


def worker(clock: Clock, seconds: list[float], *, on_device: bool = False) -> Callable[..., Any]:
    """Work that takes the given seconds, one call after the other."""
    durations = iter(seconds)

    def work() -> int:
        took = next(durations)
        if on_device:
            clock.pending += took
        else:
            clock.now += took
        return 3

    return work


@pytest.mark.parametrize("on_device", [False, True])
def test_what_a_device_still_has_to_do_is_counted(clock: Clock, on_device: bool) -> None:
    clock.pending = 7.0  # requested before the watch starts, so it does not count
    assert seconds_of(worker(clock, [2.0], on_device=on_device)) == 2.0
    watch = Stopwatch()
    worker(clock, [0.5], on_device=on_device)()
    assert watch.seconds() == 0.5


def test_the_median_leaves_out_the_first_call(clock: Clock) -> None:
    assert median_seconds(worker(clock, [50.0, 1.0, 9.0, 2.0]), 3) == 2.0


def test_the_first_call_of_a_median_has_ended_on_the_device(clock: Clock) -> None:
    assert median_seconds(worker(clock, [50.0, 1.0], on_device=True), 1) == 1.0


@pytest.mark.parametrize(
    ("window", "durations", "expected"),
    [
        (1.0, [4.0, 5.0, 6.0], 5.0),  # three calls at least
        (10.0, [1.0, 2.0, 3.0, 4.0, 5.0], 2.5),  # until the window is full
        (1000.0, [1.0] * 19 + [21.0], 2.0),  # twenty at the most
    ],
)
def test_the_mean_is_over_a_window(clock: Clock, window: float, durations: list[float], expected: float) -> None:
    assert mean_seconds(worker(clock, durations), seconds=window) == expected


def test_the_limits_of_a_window_can_be_chosen(clock: Clock) -> None:
    assert mean_seconds(worker(clock, [4.0]), seconds=1.0, least=1) == 4.0
    assert mean_seconds(worker(clock, [1.0, 3.0]), seconds=1e9, least=1, most=2) == 2.0


def test_a_throughput_counts_what_was_done_until_the_time_was_over(clock: Clock) -> None:
    found = throughput(worker(clock, [1.0, 1.0, 1.0]), 2.5)
    assert found == Throughput(9, 3.0)
    assert found.rate == 3.0


def test_a_throughput_is_of_one_call_at_least(clock: Clock) -> None:
    assert throughput(worker(clock, [4.0], on_device=True), 0.0) == Throughput(3, 4.0)


def test_stages_add_up(clock: Clock) -> None:
    watch = StageStopwatch(["directions", "inference", "arithmetic"])
    for stage, took in (("inference", 2.0), ("arithmetic", 0.5), ("inference", 0.25)):
        with watch(stage):
            clock.pending += took
    assert watch.seconds == {"directions": 0.0, "inference": 2.25, "arithmetic": 0.5}
