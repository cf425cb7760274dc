"""One log line for each long phase of the work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("deepzero")

PATIENCE = 3.0
"""Seconds after which a phase is named in a warning."""
REMINDER = "deepzero_reminder"


@contextmanager
def announced(doing: str) -> Iterator[None]:
    """Name a phase of the work, in the logger ``deepzero``.

    It is named when it begins, at the level INFO, which the command line shows. Elsewhere a user sees warnings alone,
    and gets one if the phase takes longer than :data:`PATIENCE`.
    """
    log.info("%s", doing)
    timer = threading.Timer(
        PATIENCE, log.warning, ("%s: this can take a while, once", doing), {"extra": {REMINDER: True}}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_reminder(record: logging.LogRecord) -> bool:
    """True for the warning that a phase, which was named before, takes long."""
    return getattr(record, REMINDER, False)
