"""Dispatch of a step's queries to an executor: send calls, take answers in any order, deal with what goes wrong."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from deepzero.errors import DeepZeroError, NonFiniteLossError, QueryError
from deepzero.executors.policy import QueryPolicy, RateLimit
from deepzero.executors.pool import Pool, Reply
from deepzero.executors.queries import BASE, Query, is_finite, joint_key
from deepzero.executors.worker import Failure, Message, Packed, forget

log = logging.getLogger("deepzero")

LONGEST_WAIT = 1.0
"""Seconds after which the loop looks around in any case, so that an interrupt is seen on every platform."""

HINT = (
    "; what it printed says why. Workers that die at once may import your script, whose own work then stands behind "
    'if __name__ == "__main__":; workers that die later may lack memory'
)
"""Advice after the loss of a worker."""

AHEAD = 2
"""Calls in flight for each worker where one may wait in a queue, so that no worker waits for the next call."""

Accept = Callable[[dict[int, Any]], None]


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
class BlackBoxCall:
    """One call of the black box, for one query or a stack of them.

    Attributes:
        queries: what it answers.
        tries: how often it was made before.
        not_numbers: how many of these gave an answer that was not a number.
        loaded: whether it must carry the payload.
    """

    queries: tuple[Query, ...]
    tries: int = 0
    not_numbers: int = 0
    loaded: bool = False

    @property
    def place(self) -> int:
        """Place of the first query, which orders calls."""
        return self.queries[0].place


@dataclass(frozen=True)
class Flight:
    """A call on its way, and when to give it up."""

    call: BlackBoxCall
    deadline: float


class Dispatcher:
    """Gets the queries of one step answered, each or skipped.

    Args:
        pool: where.
        payload: what the queries share.
        policy: what is tolerated.
        rate: when calls may start; it goes on from step to step.
        accept: stores answers by place (None: skipped), for good, before anything else is done with them.
        describe: a place in words, for messages.
        clock: the time.
        required: true of a place whose query may not be skipped.
    """

    def __init__(
        self,
        pool: Pool,
        payload: Packed,
        *,
        policy: QueryPolicy,
        rate: RateLimit,
        accept: Accept,
        describe: Callable[[int], str],
        clock: Clock,
        required: Callable[[int], bool] = BASE.__eq__,
    ) -> None:
        self._required = required
        self._pool, self._payload, self._policy, self._rate = pool, payload, policy, rate
        self._accept, self._describe, self._clock = accept, describe, clock
        self._at_once = policy.timeout is not None or policy.per_second is not None
        self._name = uuid.uuid4().hex
        self._serial = itertools.count()
        self._open: set[int] = set()
        self._ready: list[tuple[int, int, BlackBoxCall]] = []
        self._delayed: list[tuple[float, int, BlackBoxCall]] = []
        self._flights: dict[Future[Reply], Flight] = {}
        self._late: dict[Future[Reply], BlackBoxCall] = {}
        self._done: SimpleQueue[Future[Reply]] = SimpleQueue()

    def run(self, stacks: Iterable[Sequence[Query]]) -> None:
        """Answer or skip every query; one stack is one call."""
        for stack in stacks:
            self._open.update(query.place for query in stack)
            self._queue(BlackBoxCall(tuple(stack)))
        self._count_workers()
        try:
            while self._open:
                self._send()
                self._receive(self._clock.take(self._done, self._patience()))
                self._give_up_hanging()
        except BaseException:
            with suppress(DeepZeroError):
                self._keep([f for f in (*self._flights, *self._late) if f.done()])
            raise
        finally:
            forget(self._name)
            for future, flight in self._flights.items():
                if not future.cancel():
                    self._pool.abandon(future, flight.deadline)

    # Sending ---------------------------------------------------------------------------------------------------------

    def _count_workers(self) -> None:
        """Set the number of calls in flight, and of first calls that carry the payload."""
        if self._policy.timeout is not None:
            self._pool.warm_up()
        self._pool.greet()
        known = self._pool.workers()
        at_most = self._policy.in_flight
        if known is None and at_most is None:
            raise QueryError(
                "the executor does not say how many workers it has; pass policy=dz.QueryPolicy(in_flight=...) with the "
                "number of calls that it runs at the same time"
            )
        self._workers = known or at_most or 1
        self._limit = at_most or self._workers * (1 if self._at_once else AHEAD)
        self._unloaded = min(self._limit, self._workers)

    def _free(self) -> bool:
        """True if one more call may be in flight and, where it must start at once, a worker is free."""
        active = len(self._flights)
        starts = not self._at_once or active + len(self._pool.hanging) < self._workers
        return active < self._limit and starts

    def _queue(self, call: BlackBoxCall) -> None:
        """Calls go in the order of their places, so that what is tried again comes before what is new."""
        heapq.heappush(self._ready, (call.place, next(self._serial), call))

    def _send(self) -> None:
        """Send every call that may go now."""
        now = self._clock.now()
        while self._delayed and self._delayed[0][0] <= now:
            self._queue(heapq.heappop(self._delayed)[-1])
        while self._ready and self._free() and self._rate.ready_at() <= now:
            call = self._still_open(heapq.heappop(self._ready)[-1])
            if call is not None:
                self._submit(call, now)
        if self._ready and not self._flights and self._pool.stuck(now) >= self._workers:
            self._all_hang()

    def _still_open(self, call: BlackBoxCall) -> BlackBoxCall | None:
        """The call without queries whose answer came late."""
        queries = tuple(query for query in call.queries if query.place in self._open)
        return replace(call, queries=queries) if queries else None

    def _submit(self, call: BlackBoxCall, now: float) -> None:
        self._unloaded -= 1
        payload = self._payload if call.loaded or self._unloaded >= 0 else None
        points = tuple(query.point for query in call.queries)
        key = joint_key([query.key for query in call.queries], call.not_numbers)
        try:
            future = self._pool.submit(Message(self._name, points, key, next(self._serial), payload, os.getpid()))
        except BrokenExecutor as error:
            self._lost(call, error)
            return
        except Exception as error:
            raise final(transport_error(error), self._named(call)) from error
        self._rate.start(now)
        self._flights[future] = Flight(call, now + (self._policy.timeout or math.inf))
        future.add_done_callback(self._done.put)

    def _patience(self) -> float:
        """Seconds until something is due even if no answer comes."""
        due = min((flight.deadline for flight in self._flights.values()), default=math.inf)
        if self._delayed:
            due = min(due, self._delayed[0][0])
        if self._ready and self._free():
            due = min(due, self._rate.ready_at())
        return min(max(due - self._clock.now(), 0.0), LONGEST_WAIT)

    # Receiving -------------------------------------------------------------------------------------------------------

    def _receive(self, first: Future[Reply] | None) -> None:
        """Take all answers that are there: first keep what is good, then see to the rest."""
        futures = [] if first is None else [first]
        while (future := self._clock.take(self._done, 0)) is not None:
            futures.append(future)
        futures = [future for future in futures if future in self._flights or future in self._late]
        self._keep(futures)
        for future in futures:
            call = self._landed(future)
            if call is not None:
                self._react(call, future)

    def _landed(self, future: Future[Reply]) -> BlackBoxCall | None:
        """The call of a future that is done with; None if it was given up: then it is being made again already."""
        self._late.pop(future, None)
        flight = self._flights.pop(future, None)
        return None if flight is None else flight.call

    def _keep(self, futures: Sequence[Future[Reply]]) -> None:
        """Accept the finite answers among the results, all at once."""
        found: dict[int, Any] = {}
        for future in futures:
            call = self._flights[future].call if future in self._flights else self._late[future]
            if not future.cancelled() and future.exception() is None and isinstance(losses := future.result(), list):
                pairs = zip(call.queries, losses, strict=True)
                found.update((query.place, loss) for query, loss in pairs if is_finite(loss))
        self._settle({place: loss for place, loss in found.items() if place in self._open})

    def _settle(self, found: dict[int, Any]) -> None:
        """Answered or skipped: on disk first."""
        if found:
            self._accept(found)
        self._open.difference_update(found)

    def _react(self, call: BlackBoxCall, future: Future[Reply]) -> None:
        """Deal with whatever of a call is not answered yet."""
        rest = self._still_open(call)
        if rest is None:
            return
        try:
            reply = future.result()
        except (BrokenExecutor, CancelledError) as error:
            self._lost(rest, error)
        except Exception as error:
            self._failed(rest, self._policy.on_error, transport_error(error))
        else:
            if reply is None:
                self._queue(replace(rest, loaded=True))
            elif isinstance(reply, Failure):
                self._failed(rest, self._policy.on_error, raised(reply))
            else:
                odd = NonFiniteLossError("the black box returned NaN or infinity")
                self._failed(replace(rest, not_numbers=rest.not_numbers + 1), self._policy.on_nan, odd)

    # What goes wrong -------------------------------------------------------------------------------------------------

    def _failed(self, call: BlackBoxCall, reaction: str, error: DeepZeroError) -> None:
        """Retry, skip or stop; what is required is never skipped."""
        if reaction == "retry" and call.tries < self._policy.retries:
            delay = self._policy.delay(call.tries + 1, place=call.place)
            log.info("%s: %s; again in %.2g s", self._named(call), error, delay)
            again = replace(call, tries=call.tries + 1)
            heapq.heappush(self._delayed, (self._clock.now() + delay, next(self._serial), again))
            return
        resort = self._policy.exhausted if reaction == "retry" else reaction
        if resort == "stop" or any(self._required(query.place) for query in call.queries):
            raise final(error, f"{self._named(call)}, try {call.tries + 1}")
        log.warning("%s: %s; skipped", self._named(call), error)
        self._settle({query.place: None for query in call.queries})

    def _named(self, call: BlackBoxCall) -> str:
        more = f" and {len(call.queries) - 1} more" if len(call.queries) > 1 else ""
        return f"{self._describe(call.place)}{more}"

    def _give_up_hanging(self) -> None:
        now = self._clock.now()
        for future, flight in [item for item in self._flights.items() if item[1].deadline <= now]:
            if future.done():
                continue
            del self._flights[future]
            self._late[future] = flight.call
            self._pool.abandon(future, now)
            call = self._still_open(flight.call)
            if call is not None:
                self._failed(call, "retry", QueryError(f"no answer within {self._policy.timeout:g} s"))

    def _all_hang(self) -> None:
        """No worker is left to send a call to."""
        if not self._pool.can_be_remade:
            raise QueryError(
                f"all {self._workers} workers hang in calls given up after {self._policy.timeout:g} s; pass a function "
                "that makes the pool, executor=lambda: ProcessPoolExecutor(...), so that it can be made again"
            )
        log.warning("all %d workers hang; a new pool is made", self._workers)
        self._new_pool()

    def _lost(self, call: BlackBoxCall, error: BaseException) -> None:
        """A worker died, and the executor with it: everything in flight goes to a new one."""
        if not self._pool.can_be_remade:
            raise QueryError(
                f"the executor broke down ({type(error).__name__}: {error}); pass a function that makes it, "
                "executor=lambda: ProcessPoolExecutor(...), so that it can be made again"
            ) from error
        self._keep([future for future in self._flights if future.done()])
        calls = [call, *(flight.call for flight in self._flights.values())]
        self._new_pool()
        for lost in filter(None, map(self._still_open, calls)):
            self._failed(lost, "retry", QueryError(f"its worker was lost ({type(error).__name__}: {error}){HINT}"))

    def _new_pool(self) -> None:
        self._flights.clear()
        self._late.clear()
        self._pool.discard()
        self._count_workers()


def transport_error(error: BaseException) -> QueryError:
    """An exception that did not come from the black box but from the executor that was to run it."""
    text = f"{type(error).__name__}: {error}"
    hint = "; define fn and what it uses at the top of a module" if "pickle" in text.lower() else ""
    return QueryError(f"the executor could not run it, {text}{hint}")


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
