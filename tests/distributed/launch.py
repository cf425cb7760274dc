"""Real processes: torchrun and the command line, one thread each."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
TRAIN = ["-m", "deepzero", "train", "digits", "--epochs", "1", "--limit", "320", "--checkpoint-steps", "1"]
LIMIT = 150.0
"""Seconds after which a launch has failed, on the busiest machine."""


@contextmanager
def started(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, which is gone at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.communicate()


@contextmanager
def ranks(count: int, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes of one team that nobody watches: what ``torchrun`` tells its ranks, without it."""
    team = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        yield [
            stack.enter_context(started(*words, RANK=str(rank), LOCAL_RANK=str(rank), **team)) for rank in range(count)
        ]


def finished(process: subprocess.Popen[str]) -> str:
    """What a process printed until it ended."""
    output, _ = process.communicate(timeout=LIMIT)
    return output


def torchrun(processes: int, *options: str) -> tuple[str, ...]:
    """Words that start ``torchrun`` on this host."""
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options)


def children(pid: int) -> list[int]:
    """Processes that a process has started, oldest first (Linux)."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    return [p for child in children(pid) for p in [child, *descendants(child)]]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, f"the process ended too early:\n{finished(process)}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def lines(path: Path) -> int:
    """Lines of a file, 0 if it is not there."""
    return path.read_text().count("\n") if path.exists() else 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
