"""One line about what takes long, for whoever waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("deepzero")

PATIENCE = 3.0
"""Seconds after which a user is told what is being done."""
REMINDER = "deepzero_reminder"


@contextmanager
def announced(doing: str) -> Iterator[None]:
    """Name a phase of the work, in the logger ``deepzero``.

    It is named when it begins, at the level INFO, which the command line shows. Elsewhere a user sees warnings alone,
    and is told by one if it takes longer than :data:`PATIENCE`.
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
    """Whether it says of a phase, which has been named, that it takes long."""
    return getattr(record, REMINDER, False)
