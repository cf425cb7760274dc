"""The processes of one run: their ranks, and the few bytes that they exchange.

``torchrun`` starts a team; a process that was started without it is a team of one, which runs through the same code.
Bytes and float64 numbers travel through ``torch.distributed`` collectives; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from deepzero import validation
from deepzero.errors import DeepZeroError, InvalidInputError, TeamError
from deepzero.orphans import watch_parent
from deepzero.rendezvous import fresh_store

log = logging.getLogger("deepzero")

DEFAULT_TIMEOUT = 600.0
"""Seconds to wait for another process: longer than any two of them differ, first compilation included."""


class Team:
    """One process and the others it works with.

    ``Team(rank, size)`` makes the implementation that fits, as ``pathlib.Path`` does: :class:`Alone` for one process,
    :class:`Torchrun` for several, between which ``torch.distributed`` has been initialized. By itself the class is
    abstract: an implementation has :meth:`broadcast`, :meth:`exchange`, :meth:`highest` and :meth:`agrees`.

    Args:
        rank: number of this process, from 0; rank 0 leads: it alone reads and writes the run's folder.
        size: number of processes.
        device: of the tensors that are exchanged: the CPU for gloo, the process's own GPU for NCCL.
        timeout: seconds to wait for another process.

    Attributes:
        exchanged: payload bytes that this process has received from others so far.
        interruptible: True if a signal may end this process at once: no other process waits for it, and no launcher
            sends the signals of a terminal a second time.

    Example:
        >>> alone = Team()
        >>> alone.leads, alone.broadcast(b"weights"), alone.highest(3)
        (True, b'weights', 3)
    """

    interruptible: ClassVar[bool]

    def __new__(cls, rank: int = 0, size: int = 1, **options: Any) -> Self:  # noqa: ARG004 - those of __init__
        """The implementation for a team of this size."""
        chosen = (Alone if size == 1 else Torchrun) if cls is Team else cls
        return cast("Self", super().__new__(chosen))

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        device: torch.device | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")
        self.timeout = validation.positive("timeout", timeout, hint=f"{DEFAULT_TIMEOUT:g}")
        self.exchanged = 0
        self._agent = None if launch_name() is None else os.getppid()

    @property
    def leads(self) -> bool:
        """True for the process that reads and writes files."""
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """True once the agent of ``torchrun`` that started this process has ended: nobody would pass signals on."""
        return self._agent is not None and os.getppid() != self._agent

    def broadcast(self, data: bytes, *, source: int = 0) -> bytes:
        """The bytes that one rank gives, on every rank; those of the others are ignored."""
        raise NotImplementedError

    def exchange(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's part, on every rank.

        Args:
            own: float64 ``[sizes[rank]]``.
            sizes: length of each rank's part, the same list on all ranks.

        Returns:
            The parts in the order of ranks, bit for bit, on the device of ``own``.

        Raises:
            TeamError: a rank hangs or has ended.
        """
        raise NotImplementedError

    def highest(self, value: int) -> int:
        """The largest of all ranks' values, on every rank."""
        raise NotImplementedError

    def agrees(self, value: Callable[[], int]) -> bool:
        """True on every rank if all of them get the same value; a process that is alone does not compute it."""
        raise NotImplementedError

    def first(self, text: str | None) -> str | None:
        """The text of the lowest rank that has one, on every rank; None if none has."""
        source = self.size - self.highest(0 if text is None else self.size - self.rank)
        return None if source == self.size else self.broadcast((text or "").encode(), source=source).decode()

    def from_leader(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` on rank 0 alone, and return its JSON-able value on every rank.

        Raises:
            TeamError: on the other ranks, if the call failed on rank 0, where the error itself is raised.
        """
        return json.loads(self.bytes_from_leader(lambda: json.dumps(function()).encode()))

    def bytes_from_leader(self, function: Callable[[], bytes]) -> bytes:
        """As :meth:`from_leader`, for a function that returns bytes."""
        if not self.leads:
            answer = self.broadcast(b"")
            if answer[:1] != b"+":
                raise TeamError(f"rank 0 stopped: {answer[1:].decode()}")
            return answer[1:]
        try:
            answer = function()
        except DeepZeroError as error:
            self.broadcast(b"-" + str(error).encode())
            raise
        self.broadcast(b"+" + answer)
        return answer


class Alone(Team):
    """A process without others: whatever it gives is what all have."""

    interruptible = True

    def broadcast(self, data: bytes, *, source: int = 0) -> bytes:
        """The data."""
        return data

    def exchange(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The one part."""
        return [own]

    def highest(self, value: int) -> int:
        """The value."""
        return value

    def agrees(self, value: Callable[[], int]) -> bool:
        """True."""
        return True


class Torchrun(Team):
    """Processes that ``torchrun``, or another launcher, has started, and collectives of ``torch.distributed``."""

    interruptible = False

    def broadcast(self, data: bytes, *, source: int = 0) -> bytes:
        """The bytes of ``source``: their number first, then they themselves."""
        length = self._from(source, torch.tensor([len(data)], dtype=torch.int64))
        own = bytearray(data) if self.rank == source else bytearray(int(length))
        if not own:
            return b""
        return bytes(self._from(source, torch.frombuffer(own, dtype=torch.uint8)).numpy())

    def exchange(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """One broadcast from each rank, all of them at the same time.

        Raises:
            TeamError: a rank hangs or has ended.
        """
        parts = [
            own.to(self.device) if rank == self.rank else torch.empty(size, dtype=torch.float64, device=self.device)
            for rank, size in enumerate(sizes)
        ]
        with self._waiting("another rank"):
            pending = [dist.broadcast(part, src=rank, async_op=True) for rank, part in enumerate(parts)]
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in [*others, self.rank]:  # a failure to hand over the own part names nobody: that of the others does
            with self._waiting(f"rank {rank}"):
                pending[rank].wait()
        self.exchanged += 8 * (sum(sizes) - sizes[self.rank])
        return [part.to(own.device) for part in parts]

    def highest(self, value: int) -> int:
        """An all-reduce of one number."""
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        with self._waiting("another rank"):
            dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        self.exchanged += 8
        return int(shared)

    def agrees(self, value: Callable[[], int]) -> bool:
        """True if the largest value is the smallest one."""
        own = value()
        return self.highest(own) == -self.highest(-own)

    def _from(self, rank: int, tensor: Tensor) -> Tensor:
        shared = tensor.to(self.device)
        with self._waiting(f"rank {rank}"):
            dist.broadcast(shared, src=rank)
        if rank != self.rank:
            self.exchanged += shared.nbytes
        return shared.cpu()

    @contextmanager
    def _waiting(self, whom: str) -> Iterator[None]:
        """Turn the failures of collectives into one error that names who is missing."""
        try:
            yield
        except RuntimeError as error:
            raise TeamError(
                f"rank {self.rank} of {self.size} waited for {whom} in vain (limit {self.timeout:g} s): it hangs, has "
                "ended, or its connection is lost. See the output of that process; everything up to the last "
                "checkpoint is kept, and `torchrun --max-restarts 3` would start all processes again from there.\n"
                f"torch.distributed said: {str(error).splitlines()[0]}"
            ) from error


@contextmanager
def joined(device: str = "cpu", *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Team]:
    """The team that this process was started in: ``torchrun``'s, or a team of one.

    Args:
        device: of the run: ``cpu``, or ``cuda``, where each process of a host takes the GPU of its local
            rank. Collectives go through NCCL between GPUs, else through gloo.
        timeout: seconds to wait for another process.

    Raises:
        InvalidInputError: the device is not there, or this host has fewer GPUs than processes.
        TeamError: the processes do not find each other.
    """
    timeout = validation.positive("timeout", timeout, hint=f"{DEFAULT_TIMEOUT:g}")
    own = own_device(validation.device(device))
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or not dist.is_available():
        yield Alone(device=own, timeout=timeout)
        return
    import_module("torch.distributed.nn")  # its functions keep, for good, the group that is there when they are made
    backend, limit = "nccl" if own.type == "cuda" else "gloo", timedelta(seconds=timeout)
    try:
        store, rank, size = fresh_store(limit)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:
        raise TeamError(f"the processes of this run do not find each other: {error}") from error
    if launch_name() is not None:
        watch_parent(_stop_as_orphan)
    try:
        team = Team(dist.get_rank(), dist.get_world_size(), device=own, timeout=timeout)
        yield team
        with suppress(TeamError):  # one that ended by an error of its own does not come
            team.highest(0)  # nobody needs rank 0's store any more
    finally:
        dist.destroy_process_group()


def _stop_as_orphan() -> None:
    """Ask this process to end as its agent would have: a training ends its step and saves, anything else ends."""
    log.warning("the agent of torchrun that started this process has ended, and so will this process")
    os.kill(os.getpid(), signal.SIGTERM)


def own_device(device: torch.device) -> torch.device:
    """The device of this process: with ``cuda`` under torchrun, the GPU of its local rank."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise InvalidInputError(
            f"local rank {local} has no GPU of its own: this host has {count}; give torchrun --nproc-per-node {count}"
        )
    return torch.device("cuda", local)


def launch_name() -> str | None:
    """A name of the launch: the same for all processes of one ``torchrun`` and after its restarts; None without it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None or run != "none":
        return run
    return f"{socket.gethostname()}:{os.getppid()}"  # a launch without a name: one host, whose agent is our parent
