"""Stopwatches for calls on any device: what a GPU still has to do when a call returns is counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


def wait_for_devices() -> None:
    """Return when all that was requested of GPUs is done, so that a clock read afterwards counts it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)


@contextmanager
def processor_time() -> Iterator[None]:
    """Stopwatches count processor seconds of this process within the block, of all its threads together.

    On a machine that is busy with other work these say more than wall seconds, if one thread works at a time.
    """
    _clocks.append("process_time")
    try:
        yield
    finally:
        _clocks.pop()


_clocks = ["perf_counter"]
"""Functions of the module time; the last one is read."""


class Stopwatch:
    """Wall seconds since it was made; processor seconds within :func:`processor_time`."""

    def __init__(self) -> None:
        wait_for_devices()
        self._read: Callable[[], float] = getattr(time, _clocks[-1])
        self._start = self._read()

    def seconds(self) -> float:
        """Seconds until now, when the devices are done."""
        wait_for_devices()
        spent: float = self._read() - self._start
        return spent


class StageStopwatch:
    """Wall seconds by stage of a computation that goes through its stages many times.

    Args:
        stages: their names.

    Attributes:
        seconds: seconds spent in each stage up to now.

    Example:
        >>> watch = StageStopwatch(["forward", "update"])
        >>> with watch("forward"):
        ...     _ = sum(range(1000))
        >>> watch.seconds["forward"] > watch.seconds["update"] == 0.0
        True
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        watch = Stopwatch()
        yield
        self.seconds[stage] += watch.seconds()


@dataclass(frozen=True)
class Throughput:
    """Work done, and the seconds it took.

    Attributes:
        done: pieces of work, for example queries.
        seconds: wall seconds.
    """

    done: int
    seconds: float

    @property
    def rate(self) -> float:
        """Pieces of work per second."""
        return self.done / self.seconds

    def __add__(self, other: Throughput) -> Throughput:
        return Throughput(self.done + other.done, self.seconds + other.seconds)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    watch = Stopwatch()
    function()
    return watch.seconds()


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    function()
    return statistics.median(seconds_of(function) for _ in range(repeats))


def mean_seconds(function: Callable[[], object], *, seconds: float, least: int = 3, most: int = 20) -> float:
    """Mean seconds of a call, over a window of time, so that a busy moment does not decide.

    Args:
        function: the call.
        seconds: of calls after which no further one is begun.
        least: calls that are timed however long they take.
        most: calls that are timed at the most.
    """
    times: list[float] = []
    while len(times) < least or (len(times) < most and sum(times) < seconds):
        times.append(seconds_of(function))
    return statistics.fmean(times)


def throughput(work: Callable[[], int], seconds: float) -> Throughput:
    """Repeat a call until ``seconds`` have passed, at least once.

    Args:
        work: returns how many pieces of work it did.
        seconds: of wall time after which no further call is begun.
    """
    watch = Stopwatch()
    done, spent = work(), watch.seconds()
    while spent < seconds:
        done += work()
        spent = watch.seconds()
    return Throughput(done, spent)
