"""Runs on several processes end with the bits of a run on one, whatever befalls the processes."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from launch import TRAIN, children, finished, free_port, lines, ranks, started, torchrun, wait_until

from deepzero.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in Linux's /proc"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run on one process, without torchrun: this one."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main([*TRAIN[2:], "--out", str(out)]) == 0
    return (out / "model.safetensors").read_bytes()


def weights(out: Path, output: str) -> bytes:
    assert (out / "model.safetensors").exists(), output
    return (out / "model.safetensors").read_bytes()


def test_a_killed_rank_is_replaced_and_nothing_is_lost(undisturbed: Any, tmp_path: Path) -> None:
    """Rank 0, which holds the folder of the run: losing any other one loses less."""
    out = tmp_path / "run"
    with started(*torchrun(2, "--max-restarts", "2"), *TRAIN, "--out", str(out)) as process:
        wait_until(lambda: lines(out / "metrics.jsonl") >= 2, process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        output = finished(process)
    assert process.returncode == 0, output
    assert "continuing from" in output
    assert weights(out, output) == undisturbed


def resumed(out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a run prints that goes on in this process."""
    capfd.readouterr()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    found = capfd.readouterr()
    return found.out + found.err


def test_a_run_whose_agent_is_terminated_goes_on_with_another_number_of_processes(
    undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with started(*torchrun(2), *TRAIN, "--out", str(out)) as process:
        wait_until(lambda: lines(out / "metrics.jsonl") >= 2, process)
        process.send_signal(signal.SIGTERM)
        first = finished(process)
    assert not (out / "summary.json").exists(), first
    assert "continuing from" in resumed(out, capfd)
    assert weights(out, first) == undisturbed


def test_workers_of_a_killed_agent_end_their_step_save_and_stop(
    undisturbed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with started(*torchrun(2), *TRAIN, "--out", str(out)) as process, nobody_left(process):
        wait_until(lambda: lines(out / "metrics.jsonl") >= 2, process)
        process.kill()
        first = finished(process)  # the output ends with the last of the workers
    assert "stopped by the end of the torchrun agent that started it; everything is saved" in first
    assert not (out / "summary.json").exists(), first
    resumed(out, capfd)
    assert weights(out, first) == undisturbed


LOOP = """
import deepzero as dz

with dz.joined() as team:
    while True:
        team.highest(1)
        print("step", flush=True)
"""


def test_a_loop_of_ones_own_ends_with_its_agent(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    with started(*torchrun(2), str(script)) as process, nobody_left(process):
        assert process.stdout is not None
        while "step" not in process.stdout.readline():
            assert process.poll() is None
        process.kill()
        assert "has ended, and so will this process" in finished(process)


@contextmanager
def nobody_left(process: subprocess.Popen[str]) -> Iterator[None]:
    """A block after which the workers of an agent that was killed in it are gone, whether or not they ended."""
    seen: list[int] = []
    try:
        wait_until(lambda: len(children(process.pid)) == 2, process)
        seen = children(process.pid)
        yield
    finally:
        for pid in seen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_three_processes_of_two_agents_give_the_bits_of_one(undisturbed: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "one-run"]
    agent = ["-m", "torch.distributed.run", *meeting, "--rdzv-endpoint", f"localhost:{free_port()}"]
    words = [*TRAIN, "--out", str(out)]
    with (
        started(*agent, "--nproc-per-node", "2", *words) as first,
        started(*agent, "--nproc-per-node", "1", *words) as second,
    ):
        outputs = finished(first) + finished(second)
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert weights(out, outputs) == undisturbed
    assert json.loads((out / "summary.json").read_text())["processes"] == 3
    assert outputs.count("test accuracy") == 1, "rank 0 alone reports"


def test_bad_input_ends_all_ranks_with_one_clear_reason(tmp_path: Path) -> None:
    with started(*torchrun(2), "-m", "deepzero", "train", "nonsense", "--out", str(tmp_path / "run")) as process:
        output = finished(process)
    assert process.returncode != 0
    assert "error: there is no recipe 'nonsense'" in output or "error: unknown recipe" in output, output
    assert "rank 0 stopped" in output or "SIGTERM" in output, output


HANG = """
import os, pathlib, sys, time, torch
import deepzero as dz
from deepzero.errors import TeamError
dz.joined
there = pathlib.Path(sys.argv[1])
(there / os.environ["RANK"]).touch()
while len(list(there.iterdir())) < 2:  # the limit is for the team, not for imports on a busy machine
    time.sleep(0.05)
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


def test_a_rank_that_hangs_is_named_and_not_waited_for(tmp_path: Path) -> None:
    script, there = tmp_path / "hang.py", tmp_path / "there"
    script.write_text(HANG)
    there.mkdir()
    words = (str(script), str(there))
    with ranks(2, *words) as (first, _):
        output = finished(first)
    assert first.returncode == 7, output
    assert "rank 0 of 2 waited for rank 1 in vain (limit 4 s)" in output


OWN = """
import torch
import torch.nn.functional as F
import deepzero as dz

def recipe(seed: int = 0):
    torch.manual_seed(seed)
    x = torch.randn(60, 6)
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(12, 3))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), batch_size=20, shuffle=True
    )
    zo = dz.CGE(model, loss=F.cross_entropy)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return dz.Trainer(model, zo, optimizer, data, validation=data, epochs=3)
"""


def test_a_trainer_of_ones_own_gives_the_bits_of_one_process(tmp_path: Path) -> None:
    """Batches are shuffled by the global generator, which rank 0 has the say of."""
    recipe = tmp_path / "recipe_of_torchrun.py"
    recipe.write_text(OWN)
    assert main(["train", str(recipe), "--out", str(tmp_path / "one")]) == 0
    words = ["-m", "deepzero", "train", str(recipe), "--out", str(tmp_path / "two")]
    with ranks(2, *words) as processes:
        output = "".join(map(finished, processes))
    assert [process.returncode for process in processes] == [0, 0], output
    assert weights(tmp_path / "two", output) == weights(tmp_path / "one", output)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


def test_processes_with_other_data_are_stopped_before_a_step_is_taken(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe_of_torchrun.py"
    recipe.write_text(OWN.replace("torch.randn(60, 6)", "torch.randn(60, 6) + int(__import__('os').environ['RANK'])"))
    with ranks(2, "-m", "deepzero", "train", str(recipe), "--out", str(tmp_path / "run")) as processes:
        outputs = list(map(finished, processes))
    assert all(process.returncode for process in processes)
    assert all("read different batches" in output for output in outputs), outputs
    assert lines(tmp_path / "run" / "metrics.jsonl") == 0
