"""Training against a paid black box, killed twenty times: no query is billed twice, and the weights are the same bits.

The black box lives in this process and the training in another one, which gets ``SIGKILL`` in the middle of a query,
or some milliseconds after it was answered: while the answer is written to the journal, or while the next are on their
way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boxes
import numpy as np
import pytest
import torch

import deepzero as dz
from deepzero.executors.dispatch import AHEAD

KILLS, STEPS, SIZE, WORKERS = 20, 20, 20, 3
QUERIES = STEPS * (1 + SIZE)


def loss(weights: list[float]) -> float:
    return float(np.sum(np.cos(np.array(weights) * np.arange(1, SIZE + 1))))


class Service(socketserver.ThreadingTCPServer):
    """Answers a line of JSON with a loss. A key that was billed is answered again for nothing."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.before_answer: Callable[[], None] = lambda: None
        self.after_answer: Callable[[], None] = lambda: None

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(socketserver.StreamRequestHandler):
    server: Service

    def handle(self) -> None:
        asked = json.loads(self.rfile.readline())
        with self.server.lock:
            self.server.calls[asked["key"]] += 1
            self.server.before_answer()
        try:
            self.wfile.write(json.dumps(loss(asked["weights"])).encode() + b"\n")
            self.wfile.flush()
        except OSError:  # nobody is there any more
            return
        self.server.after_answer()


def query(params: dict[str, Any], port: int) -> float:
    """The client's side: one connection a query."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(json.dumps({"key": dz.query_key(), "weights": params["w"].tolist()}).encode() + b"\n")
        answer = line.makefile().readline()
    return float(json.loads(answer))


def fit(fn: Callable[..., float], *batch: Any, **options: Any) -> list[float]:
    """The weights after training."""
    box = dz.BlackBox(fn, {"w": np.linspace(0.1, 0.9, SIZE)})
    zo = dz.CGE(box, step_size=1e-3, **options)
    optimizer = torch.optim.Adam(box.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        zo.backward(*batch)
        optimizer.step()
    return list(box.values["w"].tolist())


def train(port: int, journal: str, out: str) -> None:
    """The script that is killed and started again."""
    with dz.QueryJournal(journal) as kept, ThreadPoolExecutor(WORKERS) as pool:
        weights = fit(query, port, executor=pool, journal=kept)
    Path(out).write_text(json.dumps(weights))


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_until(killed_at: int | None, pause: float, service: Service, *arguments: str) -> int | None:
    """One life of the script: it is killed at its call number ``killed_at``, ``pause`` after the answer if positive."""
    process = boxes.processes().Process(target=train, args=(service.port, *arguments))
    count = 0

    def kill() -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)

    service.before_answer = kill if pause == 0 else lambda: None
    service.after_answer = kill if pause > 0 else lambda: None
    process.start()
    process.join(200)
    return process.exitcode


@pytest.mark.slow
def test_no_query_is_billed_twice(service: Service, tmp_path: Path) -> None:
    draw = random.Random(5)
    journal, out = str(tmp_path / "queries.sqlite"), str(tmp_path / "weights.json")
    for _ in range(KILLS):
        pause = draw.choice([0.0, draw.uniform(1e-4, 5e-3)])
        assert run_until(draw.randint(1, 12), pause, service, journal, out) == -signal.SIGKILL
        assert not Path(out).exists()
    assert len(service.calls) < QUERIES
    assert run_until(None, 0.0, service, journal, out) == 0
    assert len(service.calls) == QUERIES  # what is billed: each of the distinct queries, once
    assert service.calls.total() - QUERIES <= KILLS * AHEAD * WORKERS  # asked again: what was in flight at a kill
    assert json.loads(Path(out).read_text()) == fit(lambda params: loss(params["w"].tolist()))


def test_a_whole_journal_needs_no_service(service: Service, tmp_path: Path) -> None:
    """A finished script that is started again asks nothing."""
    journal, out = str(tmp_path / "queries.sqlite"), str(tmp_path / "weights.json")
    train(service.port, journal, out)
    first = Path(out).read_text()
    assert service.calls.total() == QUERIES
    train(service.port, journal, out)
    assert service.calls.total() == QUERIES
    assert Path(out).read_text() == first
