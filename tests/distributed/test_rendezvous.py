"""A team's store listens where it is told, and nothing of a team outlives its block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from launch import free_port
from torch._C._distributed_c10d import HashStore

from deepzero import rendezvous
from deepzero.errors import TeamError
from deepzero.rendezvous import fresh_store, listening
from deepzero.team import joined

LIMIT = timedelta(seconds=30)
OTHER = "127.0.0.2"
"""Another address of the loopback, which Linux has without being told."""


@pytest.fixture
def rank_0(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The environment of the only process of a team; the port of its store."""
    port = free_port()
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return port


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason=f"needs {OTHER}")
@pytest.mark.parametrize("of_agent", [False, True])
def test_a_store_listens_at_its_address_alone(of_agent: bool, rank_0: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if of_agent:
        agent = HashStore()
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(agent, 0, 1)]))
    store, rank, size = fresh_store(LIMIT)
    store.set("key", "value")
    assert (store.get("key"), rank, size) == (b"value", 0, 1)
    assert of_agent or store.port == rank_0
    assert answers("127.0.0.1", store.port)
    assert not answers(OTHER, store.port)


@pytest.mark.parametrize(
    ("host", "address", "alone", "bound"),
    [
        ("127.0.0.1", "127.0.0.1", False, "127.0.0.1"),
        ("localhost", "127.0.0.1", False, "127.0.0.1"),
        ("node1", "127.0.0.1", True, "127.0.0.1"),
        ("node1", "127.0.0.1", False, None),  # other hosts know it by another address
        ("192.0.2.1", "192.0.2.1", False, None),  # of nobody: what is behind a forwarded port
    ],
)
def test_only_where_an_address_would_not_be_found_it_listens_everywhere(
    host: str, address: str, alone: bool, bound: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listening(host, 0, alone=alone) as listener:
        assert listener.getsockname()[0] in ((bound,) if bound else ("::", "0.0.0.0"))


def test_a_port_that_is_taken_is_an_error_of_the_team(rank_0: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", rank_0))
        other.listen()
        with pytest.raises(TeamError, match=r"do not find each other: .*Address already in use"), joined():
            pass


def test_a_team_without_a_port_is_refused(rank_0: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(TeamError, match="MASTER_PORT"), joined():
        pass


END = """
from pathlib import Path
import torch.distributed as dist
from deepzero.team import joined

def threads():
    return sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())

before = threads()
with joined() as team:
    import torch.distributed.nn  # as torch.export does
    assert team.highest(3) == 3
    assert len(threads()) >= len(before) + 3, threads()  # gloo's, and the store's
assert threads() == before, threads()
assert dist.group.WORLD is None
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds threads in Linux's /proc")
def test_threads_and_store_of_a_team_end_with_its_block(rank_0: Any) -> None:
    """What lived until the interpreter ended could abort the process then ("terminate called without ...", -6)."""
    done = subprocess.run(
        [sys.executable, "-c", END],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
