"""Rounds of several sides in turn, with medians, extremes and ratios taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from deepzero.stopwatch import Throughput

Found = TypeVar("Found")


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
    def of(cls, values: Iterable[float]) -> Spread:
        """Median and extremes of some values."""
        rounds = tuple(values)
        return cls(statistics.median(rounds), min(rounds), max(rounds), rounds)


@dataclass(frozen=True)
class Timing:
    """One round of one side.

    Attributes:
        queries: function values that an estimate takes.
        seconds: of the whole estimate, extrapolated where only a part was timed.
        timed_queries: queries that were timed.
        timed_seconds: seconds that these took.
    """

    queries: int
    seconds: float
    timed_queries: int
    timed_seconds: float

    @property
    def rate(self) -> float:
        """Queries per second of the whole estimate."""
        return self.queries / self.seconds


def in_turns(
    sides: Mapping[str, Callable[[int], Found]], rounds: int, *, swap: bool = False
) -> Iterator[dict[str, Found]]:
    """Rounds A B C, A B C, ...: whatever else slows the machine down meets all sides.

    Args:
        sides: by name; each is called with the number of the round.
        rounds: number of rounds.
        swap: every other round goes backwards (A B, B A, ...), so that no side always comes first.

    Yields:
        What every side found in a round, in the order of ``sides``.

    Example:
        >>> list(in_turns({"a": lambda turn: turn, "b": lambda turn: -turn}, 2))
        [{'a': 0, 'b': 0}, {'a': 1, 'b': -1}]
    """
    names = list(sides)
    for turn in range(rounds):
        found = {name: sides[name](turn) for name in (names[::-1] if swap and turn % 2 else names)}
        yield {name: found[name] for name in names}


def in_short_turns(sides: Mapping[str, Callable[[float], Throughput]], seconds: float, turn: float) -> dict[str, float]:
    """One round in which the sides go on taking short turns until each of them has worked for ``seconds``.

    The order is turned round after every pass: A B, B A, ...

    Args:
        sides: by name; each works for about the seconds it is given.
        seconds: of work of each side, at least.
        turn: seconds of a turn.

    Returns:
        Pieces of work per second, by side.
    """
    found = dict.fromkeys(sides, Throughput(0, 0.0))
    order = list(sides)
    while any(one.seconds < seconds for one in found.values()):
        for name in order:
            if (rest := seconds - found[name].seconds) > 0:
                found[name] += sides[name](min(turn, rest))
        order.reverse()
    return {name: one.rate for name, one in found.items()}


def by_side(rounds: Iterable[Mapping[str, Found]]) -> dict[str, list[Found]]:
    """The rounds of every side, by its name.

    Example:
        >>> by_side([{"a": 0, "b": 0}, {"a": 1, "b": -1}])
        {'a': [0, 1], 'b': [0, -1]}
    """
    found: dict[str, list[Found]] = {}
    for one in rounds:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """A figure over another, round by round; its median is not the quotient of the medians.

    Example:
        >>> ratio([8.0, 9.0, 1.0], [4.0, 1.0, 1.0]).median
        2.0
    """
    return Spread.of(one / other for one, other in zip(over, under, strict=True))


def rates(timings: Iterable[Timing]) -> list[float]:
    """Queries per second, round by round."""
    return [timing.rate for timing in timings]
