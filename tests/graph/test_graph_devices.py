"""No part mixes devices: the tests of the GPU, run in another process on a device that refuses operands on two of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pretended
import pytest
import torch

pytestmark = pytest.mark.timeout(900)
GPU_TESTS = Path(__file__).parents[1] / "gpu"


def run_on_the_pretended_device(*selection: str) -> None:
    environment = {**os.environ, "DEEPZERO_GPU_TESTS": pretended.NAME}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        *selection,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_device_refuses_what_a_real_one_refuses() -> None:
    program = (
        "import pretended, torch\n"
        "with pretended.device() as device:\n"
        "    there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)\n"
        "    assert (there + torch.tensor(1.0)).sum().item() == 12.0 and there[torch.tensor([1])].device == device\n"
        "    for mixed in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there.numpy()):\n"
        "        try:\n"
        "            mixed()\n"
        "        except RuntimeError:\n"
        "            continue\n"
        "        raise AssertionError('devices were mixed')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(GPU_TESTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert torch._C._get_privateuse1_backend_name() != pretended.NAME


IN_CONFORMANCE_AND_RULES = (
    "oracle_there and forward and propagation or agree_with_an or encoder or structure and (residual or tied)"
)
IN_DRAWS = "nothing_depends or budget or evaluation or checkpoint"


@pytest.mark.slow
def test_evaluators_rules_budgets_checkpoints_and_coordinates_without_effect() -> None:
    """In one process, because starting it is what takes the time."""
    selected = f"test_gpu_draws and ({IN_DRAWS}) or not test_gpu_draws and ({IN_CONFORMANCE_AND_RULES})"
    run_on_the_pretended_device(str(GPU_TESTS), "-k", selected)


def test_a_chunk_never_waits_for_its_device() -> None:
    """No number is read from it on the way, whatever a network is made of."""
    program = Path(__file__).with_name("waits.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"residual": {}, "pooling": {}, "perceptron": {}, "transformer": {}}
