"""The allocator keeps freed pages, and the garbage collector rests until the first step."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepzero.cli import main
from deepzero.process_memory import CollectAgain, no_collection

TINY = ["--estimator", "fo", "--sparsity", "0", "--limit", "64", "--batch-size", "32", "--epochs", "1"]

SCRIPT = """
import resource, sys, torch
from deepzero.process_memory import freed_memory_kept, reuse_freed_memory
torch.set_num_threads(1)
how = sys.argv[1]
if how == "kept":
    assert reuse_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    parts = [torch.ones(1 << 20) for _ in range(24)]  # 24 blocks of 4 MiB, freed together

def work_in_a_block():
    with freed_memory_kept(wanted=how == "block"):
        with freed_memory_kept(wanted=how == "block"):
            pass
        parts = [torch.ones(10 << 20) for _ in range(3)]  # mapped elsewhere
        work()
        del parts
        before = faults()
        parts = [torch.ones(10 << 20) for _ in range(3)]
        work()
        return faults() - before

if how in ("block", "no block"):
    work_in_a_block()
    print(work_in_a_block())
else:
    work()
    work()
    before = faults()
    for _ in range(5):
        work()
    print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_of_freed_memory_are_used_again() -> None:
    pages = 5 * 24 * (4 << 20) // 4096
    assert faults("kept") < 0.05 * pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_used_again_inside_of_a_block() -> None:
    pages = 3 * (40 << 20) // 4096
    assert faults("block") < 0.05 * pages
    assert faults("no block") > 0.1 * pages  # left alone: how many of the pages are new depends on where they lie


def faults(how: str) -> int:
    """Page faults that the script counts in a process of its own."""
    return int(subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True).stdout)


def test_nothing_is_collected_until_the_first_record() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
        sink = CollectAgain()
        sink.write({"kind": "step"})
        assert gc.isenabled()
        sink.close()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_a_training_collects_from_its_first_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = CollectAgain.write

    def note(self: Any, record: dict[str, Any]) -> None:
        seen.append(gc.isenabled())
        write(self, record)
        seen.append(gc.isenabled())

    monkeypatch.setattr(CollectAgain, "write", note)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--quiet"]) == 0
    assert seen[:4] == [False, True, True, True]
    assert gc.isenabled()
    assert main(["train", "digits", "--sparsity", "2"]) == 2
    assert gc.isenabled()
