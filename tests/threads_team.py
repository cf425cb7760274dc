"""A team whose processes are threads: what a test of numbers needs, without the seconds that processes take to start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import Tensor

from deepzero.team import Team


class Meeting:
    """Where the threads of a team put what they exchange."""

    def __init__(self, size: int) -> None:
        self.given: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=200)


class ThreadsTeam(Team):
    interruptible = False

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, len(meeting.given))
        self._meeting = meeting

    def _all(self, own: Any) -> list[Any]:
        self._meeting.given[self.rank] = own
        self._meeting.barrier.wait()
        everything = list(self._meeting.given)
        self._meeting.barrier.wait()
        return everything

    def broadcast(self, data: bytes, *, source: int = 0) -> bytes:
        return self._all(data)[source]

    def exchange(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        assert len(own) == sizes[self.rank]
        self.exchanged += 8 * (sum(sizes) - sizes[self.rank])
        return self._all(own)

    def highest(self, value: int) -> int:
        return max(self._all(value))

    def agrees(self, value: Callable[[], int]) -> bool:
        return len(set(self._all(value()))) == 1


def together(size: int, function: Callable[[Team], Any]) -> list[Any]:
    """``function(team)`` on every rank of a team of ``size``."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: function(ThreadsTeam(rank, meeting)), range(size)))
