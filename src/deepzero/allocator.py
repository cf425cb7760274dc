"""Settings of glibc's memory allocator: keep freed memory for the next tensor, or give it back."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 2**20
"""Bytes from which glibc maps an allocation by itself, at most."""
KEEP = 2**31 - 1
"""Free bytes at the end of the heap from which they are given back."""


def reuse_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory in place of giving it back to the system; True if that worked.

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
