"""Workers end with the process that they work for, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepzero import orphans

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in Linux's /proc")

HEAD = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
import deepzero as dz

HERE = Path(sys.argv[1])

def loss(params):
    time.sleep(0.02)
    (HERE / str(os.getpid())).touch()
    return float(np.square(params["w"] if isinstance(params, dict) else params).sum())

def forked():
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        zo = dz.CGE(dz.BlackBox(loss, {"w": np.ones(1)}), step_size=1e-3, executor=pool)
        while True:
            zo.backward()

if __name__ == "__main__":
"""
KILLED = {
    "minimize": ("dz.minimize(loss, np.arange(50.0), workers=2, max_steps=10**6, lr=1e-9, optimizer='sgd')", 2),
    "a pool of the user's, most of it idle": ("forked()", 1),
}
"""What a script does, and the workers that must have been asked before it is killed."""
SHARED = Path("/dev/shm")
CACHE = "torchinductor"
"""PyTorch's own cache of a user, which later processes use again."""


def session(number: int) -> list[int]:
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(of) == number and state != "Z":
            found.append(int(stat.parent.name))
    return found


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a name so short that the system takes it for that of a fork server's socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize(
    "what", [pytest.param("minimize", marks=pytest.mark.slow), "a pool of the user's, most of it idle"]
)
def test_workers_of_a_killed_script_end_and_leave_nothing_behind(what: str, tmp_path: Path, scratch: Path) -> None:
    works, workers = KILLED[what]
    script, asked = tmp_path / "script.py", tmp_path / "asked"
    script.write_text(f"{HEAD}    {works}\n")
    asked.mkdir()
    shared = set(SHARED.iterdir())
    process = subprocess.Popen(
        [sys.executable, str(script), str(asked)],
        env={**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    try:
        begun = within(60, lambda: len(list(asked.iterdir())) >= workers or process.poll() is not None)
        assert begun, "it has not begun"
        assert process.poll() is None, process.communicate()[1].decode()
        process.kill()
        process.wait()
        assert within(20, lambda: not session(process.pid)), "workers live on"
    finally:
        for left in session(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()
    assert [left for left in scratch.iterdir() if not left.name.startswith(CACHE)] == []
    assert [left for left in set(SHARED.iterdir()) - shared if left.name.startswith("sem.mp")] == []


def test_a_process_that_works_for_itself_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a process answer, too: it may outlive the one that started it."""
    from deepzero.executors.worker import works_for

    monkeypatch.setattr(orphans, "_watched", set())  # a test before may have been a rank of a team
    assert not works_for(os.getpid())
    assert not works_for(None)
    assert os.getpid() not in orphans._watched
