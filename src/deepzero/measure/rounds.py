"""Rounds of both sides in turn, their median and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A figure measured once a round.

    Example:
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, min=1.0, max=3.0, rounds=(3.0, 1.0, 2.0))
    """

    median: float
    min: float
    max: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and extremes of some values."""
        return cls(statistics.median(values), min(values), max(values), tuple(values))


@dataclass(frozen=True)
class Timing:
    """One round of one side.

    Attributes:
        queries: function values that an estimate takes.
        seconds: of the whole estimate, extrapolated where only a part was timed.
        timed_queries: queries that were timed.
        timed_seconds: how long they took.
    """

    queries: int
    seconds: float
    timed_queries: int
    timed_seconds: float

    @property
    def rate(self) -> float:
        """Queries per second of the whole estimate."""
        return self.queries / self.seconds


def ratio(over: Sequence[Timing], under: Sequence[Timing]) -> Spread:
    """How many times more queries per second, round by round.

    Example:
        >>> ratio([Timing(10, 1.0, 10, 1.0)], [Timing(10, 4.0, 5, 2.0)]).median
        4.0
    """
    return Spread.of([fast.rate / slow.rate for fast, slow in zip(over, under, strict=True)])
