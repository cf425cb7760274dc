"""The rendezvous of a team: a store of its own, by which its processes find each other, for every start.

Under a dynamic rendezvous ``torchrun`` hands the store of its agent to the processes, and the same one after a restart.
In it lie the addresses of processes that are gone, and gloo would wait for them (pytorch/pytorch#135712 has the same
with NCCL). So rank 0 opens a new store at every start and leaves its address with the agent's.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from deepzero.errors import TeamError

ADDRESS, NONCE = "deepzero/address", "deepzero/nonce"
PATIENCE = timedelta(seconds=5)
"""Time to try an address before looking for a newer one."""


def fresh_store(timeout: timedelta) -> tuple[Store, int, int]:
    """A store that no earlier start has written to, the rank of this process, and the number of processes.

    Raises:
        TeamError: rank 0 is not found.
    """
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store, rank, size  # rank 0 hosts it itself, a new one at every start
    if rank == 0:
        return _opened(store), rank, size
    return _found(store, timeout), rank, size


def _opened(agent: Store) -> Store:
    nonce = uuid.uuid4().hex
    own = TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False)
    own.set(NONCE, nonce)
    agent.set(ADDRESS, f"{own.port} {nonce}")
    return own


def _found(agent: Store, timeout: timedelta) -> Store:
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port, nonce = agent.get(ADDRESS).decode().split()
        try:
            host = os.environ["MASTER_ADDR"]
            socket.create_connection((host, int(port)), timeout=PATIENCE.total_seconds()).close()
            store = TCPStore(host, int(port), is_master=False, timeout=PATIENCE)
            if store.get(NONCE).decode() == nonce:
                store.set_timeout(timeout)
                return store
        except (OSError, RuntimeError):
            time.sleep(0.1)  # rank 0 of an earlier start left this address
    raise TeamError(f"rank 0 was not found on {os.environ['MASTER_ADDR']} within {timeout.total_seconds():g} s")
