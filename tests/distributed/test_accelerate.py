"""The example with Accelerate: on two processes it ends with the bits of one, and other batches are noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import finished, ranks, started, torchrun

EXAMPLE = Path(__file__).parents[2] / "examples" / "accelerate_loop.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in Linux's /proc"),
]


def told(*words: str) -> tuple[str, str]:
    """How many processes there were, and the digest of the weights, the same from the checkpoint."""
    with started(*words) as process:
        output = finished(process)
    assert process.returncode == 0, output
    processes = re.search(r"^(\d+) processes, 16 steps, 19,376 queries$", output, re.MULTILINE)
    digests = re.findall(r"weights (\w{12})$", output, re.MULTILINE)
    assert processes is not None, output
    assert len(digests) == 2, output
    assert len(set(digests)) == 1, output
    return processes[1], digests[0]


def test_two_processes_give_the_bits_of_one() -> None:
    (one, alone), (two, together) = told(str(EXAMPLE)), told(*torchrun(2), str(EXAMPLE))
    assert (one, two) == ("1", "2")
    assert together == alone


def test_batches_that_accelerate_divides_are_refused(tmp_path: Path) -> None:
    """Those of a loader that was handed to ``accelerator.prepare``; a wrapped model is refused without Accelerate."""
    source = EXAMPLE.read_text(encoding="utf-8")
    changed = source.replace("enumerate(batches())", "enumerate(accelerator.prepare_data_loader(batches()))")
    assert changed != source
    (tmp_path / "changed.py").write_text(changed, encoding="utf-8")
    with ranks(2, str(tmp_path / "changed.py")) as processes:
        outputs = list(map(finished, processes))
    assert all(process.returncode for process in processes)
    assert all("TeamError" in output for output in outputs), outputs
