"""One line about what takes long, for whoever waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("deepzero")

PATIENCE = 3.0
"""Seconds after which a user is told what is being done."""


@contextmanager
def announced(doing: str) -> Iterator[None]:
    """Say what is being done if it takes longer than :data:`PATIENCE`, in one line of the logger ``deepzero``."""
    timer = threading.Timer(PATIENCE, log.warning, ("%s: this can take a while, once", doing))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
