"""Ways to end a run early and cleanly: SIGINT, SIGTERM, a time limit."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from deepzero.team import Team
from deepzero.validation import positive

log = logging.getLogger("deepzero")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = " (Ctrl-C again: stop at once)"


class StopRequest:
    """Tells a loop to stop after the current step; used as a context manager.

    Inside the block the first SIGINT or SIGTERM is noted, and answered in the logger ``deepzero`` at once; a second
    one acts as usual, for the impatient. Signals are left alone outside the main thread, where Python does not deliver
    them.

    Args:
        max_seconds: a time limit from entering the block, None for none.
        once: whether a second signal acts as usual. torchrun sends signals of its own after those of a terminal, so
            there the second one is noted like the first.
        waits: whether signals act as usual until :meth:`begin`, because there is nothing to save yet.

    Raises:
        InvalidInputError: the time limit is not above 0.
    """

    def __init__(self, *, max_seconds: float | None = None, once: bool = True, waits: bool = False) -> None:
        self.max_seconds = None if max_seconds is None else positive("max_seconds", max_seconds, hint="3600")
        self._once = once
        self._waits = waits
        self._received: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if not self._waits:
            self.begin()
        return self

    def begin(self) -> None:
        """Note signals from here on; of no effect if they are noted already."""
        if not self._previous and self._received is None and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def __exit__(self, *exception: object) -> None:
        self._restore()

    @property
    def reason(self) -> str | None:
        """Why to stop, or None to go on."""
        if self._received is not None:
            return self._received
        if self.max_seconds is not None and time.monotonic() - self._start >= self.max_seconds:
            return f"the time limit of {self.max_seconds:g} s"
        return None

    @property
    def remaining(self) -> float | None:
        """Seconds until the time limit, at least a moment; None without one."""
        if self.max_seconds is None:
            return None
        return max(self._start + self.max_seconds - time.monotonic(), 1e-3)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, and tell a request around this one, which has its own work to end."""
        first, self._received = self._received is None, signal.Signals(number).name
        around = getattr(self._previous.get(signal.Signals(number)), "__self__", None)
        if self._once:
            self._restore()
        if isinstance(around, StopRequest):
            around._note(number, frame)
        elif first:
            log.warning("%s: finishing this step, then saving%s", self._received, AGAIN * self._once)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


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

    @property
    def reason(self) -> str | None:
        """Why to stop, the same on every rank; every rank must ask as often as the others."""
        own = self._own.reason
        if self._team.size == 1:
            return own
        known = [None, "the time limit", *(number.name for number in STOP_SIGNALS)]
        return known[self._team.highest(known.index(own) if own in known else 1)]
