"""Calls of a black box on their way to an executor and back, and the clock that times them."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from deepzero.errors import DeepZeroError, QueryError
from deepzero.executors.pool import Reply
from deepzero.executors.queries import Query
from deepzero.executors.worker import Failure


class Clock:
    """The time, and waiting; tests put a clock of their own in its place."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def take(self, queue: SimpleQueue[Future[Reply]], seconds: float) -> Future[Reply] | None:
        """The next future that is done, or None after ``seconds`` without one."""
        try:
            return queue.get(timeout=seconds) if seconds > 0 else queue.get_nowait()
        except Empty:
            return None


@dataclass(frozen=True)
class Call:
    """One call of the black box, for one query or a stack of them.

    Attributes:
        queries: what it answers.
        tries: how often it was made before.
        anew: how many of these gave an answer that was not a number.
        loaded: whether it must carry the payload.
    """

    queries: tuple[Query, ...]
    tries: int = 0
    anew: int = 0
    loaded: bool = False

    @property
    def place(self) -> int:
        """Place of the first query, which orders calls."""
        return self.queries[0].place


@dataclass(frozen=True)
class Flight:
    """A call on its way, and when to give it up."""

    call: Call
    deadline: float


def transport_error(error: BaseException) -> QueryError:
    """An exception that did not come from the black box but from the executor that was to run it."""
    said = f"{type(error).__name__}: {error}"
    hint = "; define fn and what it uses at the top of a module" if "pickle" in said.lower() else ""
    return QueryError(f"the executor could not run it, {said}{hint}")


def raised(failure: Failure) -> QueryError:
    """An exception of the black box: its first line, and as a note all of it with where it was raised."""
    error = QueryError(f"the black box raised {failure.error.partition(chr(10))[0]}")
    error.add_note(failure.trace)
    return error


def final(error: DeepZeroError, what: str) -> DeepZeroError:
    """An error that ends the step, with the call that it ended at."""
    ended = type(error)(f"{what}: {error} (answers so far are kept, if a journal was given)")
    for note in getattr(error, "__notes__", ()):
        ended.add_note(note)
    return ended
