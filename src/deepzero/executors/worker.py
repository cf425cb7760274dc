"""The worker's side: it keeps the step's parameters, and only a displacement comes with a query."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.executors.queries import tensor_bytes
from deepzero.objective import BlackBoxFunction
from deepzero.orphans import end_with_parent
from deepzero.probes import Displacement

KEPT = 4
"""Steps whose parameters a process keeps; an older one is sent again when it is asked for."""

_key: ContextVar[str | None] = ContextVar("deepzero_query_key", default=None)
_kept: OrderedDict[str, Ready] = OrderedDict()
_lock = Lock()


def query_key() -> str | None:
    """The content key of the query that is being answered, inside ``fn`` under an ``ExecutorEvaluator``; else None.

    It is the same whenever the same query is made again: after a timeout, after a lost worker, and when a killed script
    is started again. A service that does not bill a key twice (HTTP: ``Idempotency-Key``) then bills each query once,
    whatever happens. For a stack of parameter sets it is the key of the stack. It is None, too, if the arguments of
    ``zo.backward`` have no content key.

    Example:
        >>> query_key() is None
        True
    """
    return _key.get()


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor as bytes: executors send bytes whole, while a tensor might go through shared memory or a file."""

    data: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]
    device: str

    @classmethod
    def pack(cls, value: Tensor) -> PackedTensor:
        """Elements, and the order of the dimensions in memory, on which the last bit of a sum may depend."""
        strides = value.stride()
        order = tuple(sorted(range(value.dim()), key=lambda d: -strides[d]))
        laid_out = value.detach().permute(order)
        if not laid_out.is_contiguous():
            order, laid_out = tuple(range(value.dim())), value.detach()
        return cls(tensor_bytes(laid_out), value.dtype, tuple(laid_out.shape), order, str(value.device))

    def unpack(self) -> Tensor:
        """A tensor of its own memory."""
        if not self.data:
            flat = torch.empty(0, dtype=self.dtype)
        else:
            flat = torch.frombuffer(bytearray(self.data), dtype=self.dtype)
        back = [self.order.index(d) for d in range(len(self.order))]
        return flat.reshape(self.shape).permute(back).to(self.device)


class Ready(Protocol):
    """A payload, unpacked: it answers."""

    def answers(self, points: Sequence[Any]) -> list[Any]:
        """Answers of the black box at each point."""
        ...


class Packed(Protocol):
    """The common part of all queries of a step, on its way to a worker."""

    def unpack(self) -> Ready:
        """As the worker needs it."""
        ...


@dataclass(frozen=True, slots=True)
class Payload:
    """A black box with its parameters and batch."""

    function: BlackBoxFunction
    parameters: dict[str, PackedTensor]
    batch: tuple[Any, ...]

    @classmethod
    def pack(cls, function: BlackBoxFunction, parameters: dict[str, Tensor], batch: tuple[Any, ...]) -> Payload:
        """Tensors packed, wherever in ``batch`` they are."""
        packed = {name: PackedTensor.pack(value) for name, value in parameters.items()}
        return cls(function, packed, pytree.tree_map_only(Tensor, PackedTensor.pack, batch))

    def unpack(self) -> Base:
        """With the tensors themselves."""
        parameters = {name: packed.unpack() for name, packed in self.parameters.items()}
        return Base(self.function, parameters, pytree.tree_map_only(PackedTensor, PackedTensor.unpack, self.batch))


@dataclass(frozen=True)
class Base:
    """A black box where its queries are answered."""

    function: BlackBoxFunction
    parameters: dict[str, Tensor]
    batch: tuple[Any, ...]

    def answers(self, points: Sequence[tuple[Displacement | None, float]]) -> list[float]:
        """The losses at displacements (None: the parameters themselves), each by an offset."""
        moved = [self.parameters if d is None else d.apply(self.parameters, t) for d, t in points]
        return self.function.losses(moved, self.batch)


@dataclass(frozen=True, slots=True)
class Message:
    """One call of the black box: the step it belongs to, and where to evaluate.

    Attributes:
        step: names the payload.
        points: where to evaluate, as the payload takes it.
        key: what :func:`query_key` returns meanwhile.
        serial: differs from message to message, for executors that would answer two equal ones together.
        payload: the payload, for a process that may not have it yet.
        sender: number of the process that asks.
    """

    step: str
    points: tuple[Any, ...]
    key: str | None
    serial: int
    payload: Packed | None = None
    sender: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of the black box in words; exceptions themselves do not always survive the way back."""

    error: str
    trace: str = ""


def answer(message: Message) -> list[Any] | Failure | None:
    """The answers at the points of a message; None where this process lacks the payload."""
    base = _base_of(message)
    if base is None:
        return None
    token = _key.set(message.key)
    try:
        with torch.no_grad():
            return base.answers(message.points)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())
    finally:
        _key.reset(token)


def works_for(sender: int | None) -> bool:
    """True in a process that was started to work for the sender, with which it ends from now on."""
    if sender in (None, os.getpid()) or multiprocessing.parent_process() is None:
        return False
    end_with_parent()
    return True


def _base_of(message: Message) -> Ready | None:
    is_worker = works_for(message.sender)
    with _lock:
        if message.step in _kept:
            _kept.move_to_end(message.step)
            return _kept[message.step]
        if message.payload is None:
            return None
        if not _kept and is_worker:
            torch.set_num_threads(1)  # one worker, one thread; threads of a forked process could hang
        _kept[message.step] = base = message.payload.unpack()
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
        return base


def forget(step: str) -> None:
    """Free what this process keeps of a step."""
    with _lock:
        _kept.pop(step, None)
