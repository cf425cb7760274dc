"""Memory that was freed is kept for the next tensor."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 2**20
"""Bytes from which glibc maps an allocation by itself, at most."""
KEEP = 2**31 - 1
"""Free bytes at the end of the heap from which they are given back."""


def reuse_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed in place of giving it back to the system; whether it did.

    A forward frees and allocates its activations again and again. By default glibc returns blocks of some MiB to the
    system at once, and every page of the next one is a fault, which can take as long as the arithmetic. The most memory
    that is held at a time stays as it is. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))
