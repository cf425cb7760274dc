"""What the allocator keeps is not faulted in again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from deepzero.process_memory import reuse_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert reuse_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    parts = [torch.ones(1 << 20) for _ in range(24)]  # 24 blocks of 4 MiB, freed together

work()
work()
before = faults()
for _ in range(5):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_of_freed_memory_are_used_again() -> None:
    def run(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pages = 5 * 24 * (4 << 20) // 4096
    assert run("kept") < 0.05 * pages
