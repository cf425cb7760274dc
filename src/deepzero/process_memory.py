"""Memory of the process: what glibc's allocator keeps of freed blocks, and when Python's garbage collector runs."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 2**20
"""Bytes from which glibc maps an allocation by itself, at most."""
KEEP = 2**31 - 1
"""Free bytes at the end of the heap from which they are given back."""


def reuse_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed in place of giving it back to the system; True if it does so.

    A forward frees and allocates its activations again and again. By default glibc returns blocks of some MiB to the
    system at once, and every page of the next one is a fault, which can take as long as the arithmetic. The most memory
    that is held at a time stays as it is. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))


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


@contextmanager
def no_collection() -> Iterator[None]:
    """A block in which no garbage is collected until :class:`CollectAgain` gets the record of the first step.

    Imports and the capture of a network make a million objects that stay; looking through them again and again takes a
    fifth of the time to the first step. What is there when collecting begins is not looked at any more.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CollectAgain:
    """A sink of records; the first one ends the start, and garbage is collected from then on."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, _record: Mapping[str, Any]) -> None:
        """Collect garbage from the first record on."""
        if not self._begun:
            self._begun = True
            gc.freeze()
            gc.enable()

    def close(self) -> None:
        """Let the collector look at everything again."""
        gc.unfreeze()
