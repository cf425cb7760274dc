"""Runs on several processes end with the bits of a run on one, whatever befalls the processes."""

import json
import os
import signal
from pathlib import Path

import pytest
from launch import TRAIN, children, finished, free_port, lines, started, torchrun, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in Linux's /proc"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    """The weights of a run on one process, without torchrun."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with started(*TRAIN, "--out", str(out)) as process:
        output = finished(process)
    assert process.returncode == 0, output
    return (out / "model.safetensors").read_bytes()


def weights(out: Path, output: str) -> bytes:
    assert (out / "model.safetensors").exists(), output
    return (out / "model.safetensors").read_bytes()


def test_three_processes_give_the_bits_of_one(undisturbed, tmp_path):
    out = tmp_path / "run"
    with started(*torchrun(3), *TRAIN, "--out", str(out)) as process:
        output = finished(process)
    assert process.returncode == 0, output
    assert weights(out, output) == undisturbed
    assert json.loads((out / "summary.json").read_text())["processes"] == 3
    assert output.count("test accuracy") == 1, "rank 0 alone reports"


def test_a_killed_rank_is_replaced_and_nothing_is_lost(undisturbed, tmp_path):
    """Rank 0, which holds the folder of the run: losing any other one loses less."""
    out = tmp_path / "run"
    with started(*torchrun(2, "--max-restarts", "2"), *TRAIN, "--out", str(out)) as process:
        wait_until(lambda: lines(out / "metrics.jsonl") >= 2, process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        output = finished(process)
    assert process.returncode == 0, output
    assert "continuing from" in output
    assert weights(out, output) == undisturbed


def test_a_run_whose_agent_is_terminated_goes_on_with_another_number_of_processes(undisturbed, tmp_path):
    out = tmp_path / "run"
    with started(*torchrun(2), *TRAIN, "--out", str(out)) as process:
        wait_until(lambda: lines(out / "metrics.jsonl") >= 2, process)
        process.send_signal(signal.SIGTERM)
        first = finished(process)
    assert not (out / "summary.json").exists(), first
    with started("-m", "deepzero", "train", "--resume", "--out", str(out)) as process:
        second = finished(process)
    assert process.returncode == 0, second
    assert "continuing from" in second
    assert weights(out, second) == undisturbed


def test_two_agents_form_one_run(undisturbed, tmp_path):
    out = tmp_path / "run"
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "one-run"]
    words = ["-m", "torch.distributed.run", *meeting, "--rdzv-endpoint", f"localhost:{free_port()}", *TRAIN]
    with started(*words, "--out", str(out)) as first, started(*words, "--out", str(out)) as second:
        outputs = finished(first) + finished(second)
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert weights(out, outputs) == undisturbed
    assert json.loads((out / "summary.json").read_text())["processes"] == 2


def test_bad_input_ends_all_ranks_with_one_clear_reason(tmp_path):
    with started(*torchrun(2), "-m", "deepzero", "train", "nonsense", "--out", str(tmp_path / "run")) as process:
        output = finished(process)
    assert process.returncode != 0
    assert "error: there is no recipe 'nonsense'" in output or "error: unknown recipe" in output, output
    assert "rank 0 stopped" in output or "SIGTERM" in output, output


HANG = """
import os, time, torch
import deepzero as dz
from deepzero.errors import TeamError
with dz.joined(timeout=4) as team:
    team.highest(1)
    if team.rank == 1:
        time.sleep(600)
    try:
        team.exchange(torch.zeros(2, dtype=torch.float64), [2, 3])
    except TeamError as error:
        print(error, flush=True)
        os._exit(7)
"""


def test_a_rank_that_hangs_is_named_and_not_waited_for(tmp_path):
    script = tmp_path / "hang.py"
    script.write_text(HANG)
    team = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with started(str(script), RANK="0", **team) as first, started(str(script), RANK="1", **team):
        output = finished(first)
    assert first.returncode == 7, output
    assert "rank 0 of 2 waited for rank 1 in vain (limit 4 s)" in output
