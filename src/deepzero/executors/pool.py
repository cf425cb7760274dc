"""An executor that can be asked how many workers it has, and made again where it came from a factory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from typing import Any

from deepzero.errors import InvalidInputError, QueryError
from deepzero.executors.worker import Failure, Message, answer, works_for

ExecutorSource = Executor | Callable[[], Executor]
"""A `concurrent.futures` executor, or a function that makes one."""
Reply = list[Any] | Failure | None


class Pool:
    """Any ``concurrent.futures`` executor, or a function that makes one.

    Args:
        source: an executor, which stays the caller's to shut down, or a function without arguments that returns one.

    Attributes:
        hanging: calls that nobody waits for and that still keep a worker busy, with the time they should have ended.
    """

    def __init__(self, source: ExecutorSource) -> None:
        self._shared = source if isinstance(source, Executor) else None
        self._factory = None if isinstance(source, Executor) else source
        if self._factory is not None and not callable(source):
            raise InvalidInputError(
                "executor must be a concurrent.futures executor or a function that makes one, for example "
                f"executor=lambda: ProcessPoolExecutor(8); got {type(source).__name__}"
            )
        self._made: Executor | None = None
        self._warm = False
        self.hanging: dict[Future[Reply], float] = {}

    @property
    def can_be_remade(self) -> bool:
        """True if there is a factory."""
        return self._factory is not None

    def workers(self) -> int | None:
        """Calls that run at the same time; None where the executor does not say."""
        return workers_of(self._executor())

    def warm_up(self) -> None:
        """Wait until workers that start slowly are there: their start is no part of the time of a call."""
        if self._warm:
            return
        self._warm = True
        executor = self._executor()
        with suppress(RuntimeError):  # broken or shut down: the first call will say so
            wait(_rests(executor))

    def greet(self) -> None:
        """Let forked workers know for whom they work, before some of them wait for a first call that never comes."""
        executor = self._executor()
        context: Any = getattr(executor, "_mp_context", None)
        if self._warm or context is None or context.get_start_method() != "fork":
            return
        self._warm = True
        with suppress(RuntimeError):
            _rests(executor)

    def submit(self, message: Message) -> Future[Reply]:
        """Send a message to some worker."""
        return self._executor().submit(answer, message)

    def abandon(self, future: Future[Reply], deadline: float) -> None:
        """Wait no more for a call, but remember that it keeps a worker busy until it ends."""
        hanging = self.hanging
        hanging[future] = deadline
        future.add_done_callback(lambda done: hanging.pop(done, None))

    def stuck(self, now: float) -> int:
        """Workers whose call should have ended by ``now``."""
        return sum(deadline <= now for deadline in list(self.hanging.values()))

    def discard(self) -> None:
        """Throw away an executor that the factory made, with whatever runs in it; the next call makes a new one."""
        self.hanging, self._warm = {}, False
        if self._made is not None:
            made, self._made = self._made, None
            processes = list((getattr(made, "_processes", None) or {}).values())
            _drop(made)
            for process in processes:
                process.kill()

    def close(self) -> None:
        """Shut down an executor that the factory made; one that was given is left alone."""
        if self.hanging:
            self.discard()
        elif self._made is not None:
            self._made.shutdown()
            self._made, self._warm = None, False

    def _executor(self) -> Executor:
        if self._shared is not None:
            return self._shared
        if self._made is None and self._factory is not None:
            self._made = self._factory()
        if not isinstance(self._made, Executor):
            raise QueryError(
                f"the function given as executor returned {type(self._made).__name__}; it must return a "
                "concurrent.futures executor, for example ProcessPoolExecutor(8)"
            )
        return self._made


def _rests(executor: Executor) -> list[Future[int]]:
    """A call for every worker."""
    return [executor.submit(_rest, (number, os.getpid())) for number in range(workers_of(executor) or 1)]


def _rest(call: tuple[int, int]) -> int:
    """A call, by its number and sender, that takes long enough for every worker to get one."""
    number, sender = call
    works_for(sender)
    time.sleep(0.02)
    return number


def _drop(executor: Executor) -> None:
    """Shut down without waiting."""
    try:
        executor.shutdown(wait=False, cancel_futures=True)
    except TypeError:  # an executor from before Python 3.9's interface, such as Dask's
        executor.shutdown(wait=False)


def workers_of(executor: Any) -> int | None:
    """Workers of a thread or process pool, of an MPI pool, or of a Dask client's executor."""
    for attribute in ("_max_workers", "num_workers"):
        found: object = getattr(executor, attribute, None)
        if isinstance(found, int):
            return max(found, 1)
    client = getattr(executor, "_client", None)
    if client is not None and hasattr(client, "nthreads"):
        return max(int(sum(client.nthreads().values())), 1)
    return None
