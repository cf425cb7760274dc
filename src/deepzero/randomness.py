"""Randomness as an argument: derived seeds, and a scope that leaves the global generators alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GENERATORS = threading.RLock()
"""Held while the global generators are borrowed: they belong to the whole process, and saving their state in one thread
while another one restores it can lock up inside of PyTorch (seen with 2.13)."""


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``, the same on every machine.

    Example:
        >>> derive_seed(0, "directions", 3) == derive_seed(0, "directions", 3)
        True
        >>> derive_seed(0, "directions", 3) == derive_seed(0, "directions", 4)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded_scope(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block whose draws from the global generators start from ``seed``; afterwards they are as before.

    One thread of a process at a time: others wait.
    """
    with _GENERATORS, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
