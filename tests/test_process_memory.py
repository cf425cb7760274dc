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
