"""Freed memory: the C allocator of Linux keeps it in its arenas for reuse, one arena a thread."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """The ``malloc_trim`` of glibc; None with any other C library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_freed_memory() -> None:
    """Hand freed memory back to the operating system where the C library can; costs time in proportion to it.

    A base forward of the main thread cannot reuse what a worker's arena keeps, so without this the next phase of an
    estimate would come on top of what the last one freed.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
