"""Memory of the process: what glibc's allocator keeps of freed blocks, and when Python's garbage collector runs."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 32 * 2**20
"""Bytes from which glibc maps an allocation by itself, at most."""
KEEP = 2**31 - 1
"""Free bytes at the end of the heap from which they are given back."""
ADAPTED = 2 * LARGEST
"""The same where glibc has adapted itself to large blocks, which it does when one is freed."""
MAPPINGS = 65536
"""Allocations that glibc maps by themselves at a time, at most."""


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The ``mallopt`` of glibc; None with any other C library."""
    return ctypes.CDLL(None).mallopt if platform.libc_ver()[0] == "glibc" else None


def reuse_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed in place of giving it back to the system; True if it does so.

    A forward frees and allocates its activations again and again. By default glibc returns blocks of some MiB to the
    system at once, and every page of the next one is a fault, which can take as long as the arithmetic. The most memory
    that is held at a time stays as it is. Elsewhere than on glibc nothing happens.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    _kept.after = KEEP
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))


class _Kept:
    """Nested and parallel blocks in which freed memory is kept.

    Attributes:
        after: the threshold from which the end of the heap is given back outside of all blocks.
    """

    def __init__(self) -> None:
        self.after = ADAPTED
        self._lock, self._blocks = threading.Lock(), 0

    def enter(self, mallopt: Callable[[int, int], int]) -> None:
        """Begin a block."""
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                mallopt(M_TRIM_THRESHOLD, KEEP)
                mallopt(M_MMAP_MAX, 0)

    def leave(self, mallopt: Callable[[int, int], int]) -> None:
        """End a block."""
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                mallopt(M_MMAP_MAX, MAPPINGS)
                mallopt(M_MMAP_THRESHOLD, LARGEST)
                mallopt(M_TRIM_THRESHOLD, self.after)


_kept = _Kept()


@contextmanager
def freed_memory_kept(*, wanted: bool = True) -> Iterator[None]:
    """A block in which glibc's allocator gives nothing back to the system, whatever the size, and maps nothing new.

    A query frees and allocates the same differences as the one before it. Tensors of some MiB that are mapped each by
    itself cost a page fault for every 4 KiB of them. The heap may end up in pieces, so that the process holds more than
    it would otherwise: nothing for a tight budget. Outside of the block the allocator has the settings that
    it adapts itself to where large blocks are freed: those from 32 MiB on are mapped, and the end of the heap is given
    back from 64 MiB on; what was kept serves whatever is allocated next, or :func:`give_back_freed_memory`.

    Args:
        wanted: False leaves the allocator alone.
    """
    mallopt = _mallopt() if wanted else None
    if mallopt is None:
        yield
        return
    _kept.enter(mallopt)
    try:
        yield
    finally:
        _kept.leave(mallopt)


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
