"""Freed memory goes back to the system where the C library can hand it back."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from deepzero import process_memory as heap


def resident() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the GNU C library")
def test_freed_tensors_leave_the_process() -> None:
    tensors = [torch.ones(1 << 14) for _ in range(2000)]  # 64 KiB each, from the heap: 125 MiB
    full = resident()
    fence = torch.ones(1 << 14)  # keeps the top of the heap in use
    del tensors
    heap.give_back_freed_memory()
    assert full - resident() > 100 << 20
    assert fence.sum() == 1 << 14


def test_other_systems_have_nothing_to_hand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    heap._trim.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        heap.give_back_freed_memory()
        assert heap._trim() is None
    finally:
        heap._trim.cache_clear()
