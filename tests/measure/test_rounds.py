"""Rounds in turn, and figures that are taken round by round."""

from collections.abc import Callable
from typing import Any

import pytest

from deepzero.measure.rounds import Spread, Timing, by_side, in_short_turns, in_turns, rates, ratio
from deepzero.stopwatch import Throughput


def test_ratios_are_taken_round_by_round() -> None:
    slow = [Timing(10, 10.0, 1, 1.0), Timing(10, 20.0, 1, 2.0), Timing(10, 40.0, 1, 4.0)]
    fast = [Timing(10, 1.0, 10, 1.0), Timing(10, 1.0, 10, 1.0), Timing(10, 8.0, 10, 8.0)]
    assert ratio(rates(fast), rates(slow)) == Spread(median=10.0, min=5.0, max=20.0, rounds=(10.0, 20.0, 5.0))


@pytest.mark.parametrize(
    ("swap", "order"), [(False, "a0 b0 c0 a1 b1 c1 a2 b2 c2"), (True, "a0 b0 c0 c1 b1 a1 a2 b2 c2")]
)
def test_sides_take_turns(swap: bool, order: str) -> None:
    calls = []

    def side(name: str) -> Callable[..., Any]:
        def measured(turn: int) -> tuple[str, int]:
            calls.append(f"{name}{turn}")
            return name, turn

        return measured

    found = list(in_turns({name: side(name) for name in "abc"}, 3, swap=swap))
    assert " ".join(calls) == order
    assert [list(one) for one in found] == [["a", "b", "c"]] * 3
    assert by_side(found) == {name: [(name, turn) for turn in range(3)] for name in "abc"}


def test_a_round_is_given_before_the_next_one_begins() -> None:
    calls = []
    rounds = in_turns({"a": calls.append}, 2)
    next(rounds)
    assert calls == [0]


def test_ratios_need_as_many_rounds_of_either_side() -> None:
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0, 2.0], [1.0])


def test_short_turns_fill_the_seconds_of_every_side() -> None:
    """Turns of a second, of a side that works as long as it is told, and of one whose work takes three seconds."""
    calls = []

    def punctual(seconds: float) -> Throughput:
        calls.append(("a", seconds))
        return Throughput(10, seconds)

    def long(seconds: float) -> Throughput:
        calls.append(("b", seconds))
        return Throughput(6, 3.0)

    assert in_short_turns({"a": punctual, "b": long}, 2.5, 1.0) == {"a": 12.0, "b": 2.0}
    assert calls == [("a", 1.0), ("b", 1.0), ("a", 1.0), ("a", 0.5)]


def test_the_order_of_short_turns_is_reversed_after_every_pass() -> None:
    calls = []

    def side(name: str) -> Callable[..., Any]:
        def work(seconds: float) -> Throughput:
            calls.append(name)
            return Throughput(1, seconds)

        return work

    in_short_turns({name: side(name) for name in "abc"}, 3.0, 1.0)
    assert "".join(calls) == "abccbaabc"
