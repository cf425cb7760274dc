"""The rendezvous of a team: a store of its own, by which its processes find each other, for every start.

Under a dynamic rendezvous ``torchrun`` hands the store of its agent to the processes, and the same one after a restart.
In it lie the addresses of processes that are gone, and gloo would wait for them (pytorch/pytorch#135712 has the same
with NCCL). So rank 0 opens a new store at every start and leaves its address with the agent's.

A store answers whoever reaches it, so it listens where ``MASTER_ADDR`` says, not on every interface of the host.
"""

from __future__ import annotations

import errno
import ipaddress
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
        OSError: rank 0 cannot listen at its address.
    """
    of_agent, rank = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True", int(os.environ["RANK"])
    if rank == 0 and not of_agent and "MASTER_PORT" in os.environ:
        size = int(os.environ["WORLD_SIZE"])
        return _hosted(int(os.environ["MASTER_PORT"]), size, timeout), rank, size
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    if not of_agent:
        return store, rank, size  # rank 0 hosts a new one at every start
    if rank == 0:
        return _opened(store, timeout), rank, size
    return _found(store, timeout), rank, size


def _opened(agent: Store, timeout: timedelta) -> Store:
    nonce = uuid.uuid4().hex
    own = _hosted(0, None, timeout)
    own.set(NONCE, nonce)
    agent.set(ADDRESS, f"{own.port} {nonce}")
    return own


def _hosted(port: int, size: int | None, timeout: timedelta) -> TCPStore:
    """A store of this process at ``MASTER_ADDR``; with a size, all processes have found it."""
    host = os.environ["MASTER_ADDR"]
    listener = listening(host, port, alone=os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"])
    return TCPStore(
        host,
        listener.getsockname()[1],
        size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=size is not None,
        master_listen_fd=listener.detach(),
        use_libuv=os.environ.get("USE_LIBUV", "1") == "1",
    )


def listening(host: str, port: int, *, alone: bool = False) -> socket.socket:
    """A socket that listens at an address of this host, and nowhere else.

    Only an address that this host does not have (a forwarded port), or a name that stands for the loopback here and
    for something else on other hosts (``127.0.1.1 node1`` in a list of hosts), makes it listen on every interface.

    Args:
        host: an address or a name.
        port: 0 for any that is free.
        alone: all processes are on this host, so that a name means the same to all of them.

    Raises:
        OSError: the name is unknown, or the port is taken.

    Example:
        >>> with listening("127.0.0.1", 0) as listener:
        ...     listener.getsockname()[0]
        '127.0.0.1'
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        known_elsewhere = alone or _is_literal(host) or not ipaddress.ip_address(address[0]).is_loopback
        if not known_elsewhere:
            continue
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError as error:
            listener.close()
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
        else:
            return listener
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)


def _is_literal(host: str) -> bool:
    """True of an address in numbers, and of the one name that means the same everywhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


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
