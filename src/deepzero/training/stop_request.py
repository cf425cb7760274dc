"""Requests to end a run early and cleanly: SIGINT, SIGTERM, a time limit."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any, Self

from deepzero.team import Team
from deepzero.validation import positive

log = logging.getLogger("deepzero")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = {signal.SIGINT: "; press Ctrl-C again to stop now", signal.SIGTERM: "; a second one stops it now"}
ORPHANED = "the end of the torchrun agent that started it"
_noting: list[StopRequest] = []
"""Requests that note signals at the moment, the outermost first."""
_innermost: ContextVar[StopRequest | None] = ContextVar("deepzero_stop_request", default=None)
"""The request whose block this thread is in."""


class StoppedError(BaseException):
    """Work was stopped on request, with everything saved; its text is the reason.

    Like ``KeyboardInterrupt`` it is no ``Exception``: nothing that looks for another way after a failure, as the choice
    of an evaluator does, may take it for one.
    """


class StopRequest:
    """Tells a loop to stop after the current step; used as a context manager.

    Inside the block the first SIGINT or SIGTERM is noted, and answered in the logger ``deepzero`` at once; a second
    one acts as usual, for the impatient. Signals are left alone outside the main thread, where Python does not deliver
    them. A request inside of another one's block has the reasons of that one, too.

    Args:
        max_seconds: a time limit from entering the block, None for none.
        once: True if a second signal acts as usual. torchrun sends signals of its own after those of a terminal, so
            there the second one is noted like the first.
        waits: True if signals act as usual until :meth:`begin`, because there is nothing to save yet.
        work: that is finished after a signal, in a word.
        at_once: True if a signal raises :class:`StoppedError` wherever the program is, but from a :meth:`begin` to the
            end of the block :meth:`saving` around it: for work whose every result is on the disk once it is there.

    Raises:
        InvalidInputError: the time limit is not above 0.
    """

    def __init__(
        self,
        *,
        max_seconds: float | None = None,
        once: bool = True,
        waits: bool = False,
        work: str = "step",
        at_once: bool = False,
    ) -> None:
        self.max_seconds = None if max_seconds is None else positive("max_seconds", max_seconds, hint="3600")
        self._once, self._work = once, work
        self._waits, self._at_once, self._begun = waits, at_once, False
        self._received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._start = time.monotonic()
        self._around: StopRequest | None = None
        self._token: Token[StopRequest | None] | None = None

    @classmethod
    def of(cls, team: Team, *, max_seconds: float | None = None) -> Self:
        """The request of one process of a team: a process that is alone may be interrupted until there is work to save.

        Raises:
            InvalidInputError: the time limit is not above 0.
        """
        return cls(max_seconds=max_seconds, once=team.interruptible, waits=team.interruptible)

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._around = _innermost.get()
        self._token = _innermost.set(self)
        if not self._waits:
            self._watch()
        return self

    def begin(self) -> None:
        """Note signals from here to the end of the block; of no effect outside of it, or if they are noted already."""
        self._begun = self._token is not None
        self._watch()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block at whose end all work is saved: a request that stops at once notes signals in it from :meth:`begin`.

        Raises:
            StoppedError: at its end, if one was noted.
        """
        try:
            yield
        finally:
            self._begun = False
        if self._at_once and self._received is not None:
            raise StoppedError(self._received)

    @property
    def raises(self) -> bool:
        """True if a signal at this point of the program raises :class:`StoppedError`."""
        return self._at_once and not self._begun

    def _watch(self) -> None:
        fresh = self._token is not None and not self._previous and self._received is None
        if fresh and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, _note) for number in STOP_SIGNALS}
            _noting.append(self)

    def __exit__(self, *exception: object) -> None:
        self._restore()
        if self._token is not None:
            _innermost.reset(self._token)
            self._around = self._token = None

    @property
    def reason(self) -> str | None:
        """The reason to stop, or None to go on."""
        if self._received is not None:
            return self._received
        if self.max_seconds is not None and time.monotonic() - self._start >= self.max_seconds:
            return f"the time limit of {self.max_seconds:g} s"
        return None if self._around is None else self._around.reason

    @property
    def remaining(self) -> float | None:
        """Seconds until the time limit, at least a moment; None without one."""
        if self.max_seconds is None:
            return None
        return max(self._start + self.max_seconds - time.monotonic(), 1e-3)

    def _receive(self, name: str) -> bool:
        """Note a signal; True if it is the first."""
        first, self._received = self._received is None, name
        if self._once:
            self._restore()
        return first

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self in _noting:
            _noting.remove(self)


def _note(number: int, _frame: FrameType | None) -> None:
    """Note a signal in every open request, from the inside out: those around the innermost have work to end, too."""
    sent, outermost, innermost = signal.Signals(number), _noting[0], _noting[-1]
    first = [request._receive(sent.name) for request in reversed(_noting)][-1]
    if innermost.raises:
        raise StoppedError(sent.name)
    if first:
        again = AGAIN[sent] if outermost._once else ""
        log.warning("%s: finishing this %s, then saving%s", sent.name, innermost._work, again)


class SharedStop:
    """The stop request of a whole team: if any process is asked to stop, all of them stop after the same step.

    Args:
        own: the request of this process.
        team: the processes.
    """

    def __init__(self, own: StopRequest, team: Team) -> None:
        self._own = own
        self._team = team

    def begin(self) -> None:
        """Note signals from here on."""
        self._own.begin()

    def agreed(self) -> str | None:
        """The reason to stop, the same on every rank, or None to go on; every rank must ask as often as the others."""
        return self._team.first(ORPHANED if self._team.orphaned else self._own.reason)
