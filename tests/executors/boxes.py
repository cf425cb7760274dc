"""Black boxes that worker processes can import, and an executor and a clock that tests hold in their hands."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

import deepzero as dz
from deepzero.executors.dispatch import Clock
from deepzero.executors.worker import Message

Arrays = dict[str, Any]


def rough(params: Arrays, scale: float = 1.0) -> float:
    """Not linear, and a sum whose last bit depends on its order."""
    return scale * float(np.sum(np.sin(3 * params["w"]) / 7) + torch.cos(params["v"]).sum() / 3)


def rough_stacked(params: Arrays, scale: float = 1.0) -> list[float]:
    """The same for stacked parameter sets."""
    return [rough({name: value[i] for name, value in params.items()}, scale) for i in range(len(params["w"]))]


def values(size: int = 5) -> Arrays:
    draw = np.random.default_rng(3)
    return {"w": draw.normal(size=(2, size)), "v": torch.linspace(-1, 1, 3)}


def box(fn: Callable[..., Any] = rough, batched: int | None = None) -> dz.BlackBox:
    return dz.BlackBox(fn, values(), batched=batched)


def keyed(params: Arrays) -> float:
    """Fails unless the query has a key."""
    assert dz.query_key() is not None
    return rough(params)


def dies_once(params: Arrays, mark: str, at: float) -> float:
    """Kills its process the first time that a certain query comes."""
    if params["w"][0, 0] == at and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return rough(params)


def always_dies(params: Arrays) -> float:
    os._exit(1)


def hangs_once(params: Arrays, folder: str, every: int) -> float:
    """The first ``every`` calls sleep for longer than any test waits."""
    count = len(list(Path(folder).iterdir()))
    (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    if count < every:
        time.sleep(600)
    return rough(params)


def processes() -> Any:
    """A way to start processes that have the library imported already, and no thread that a fork could catch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepzero", "torch._dynamo"])  # the latter for optimizers
    return context


def process_pool(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=processes())


class StrangeError(Exception):
    """Cannot be made from its message, and so breaks what unpickles it."""

    def __init__(self, *, code: int, body: str) -> None:
        super().__init__(f"{code} {body}")


def raises_strangely(params: Arrays) -> float:
    raise StrangeError(code=500, body="out of order")


class Faulty:
    """Answers like ``rough``, except at the calls in ``faults``: an exception to raise or a value to return."""

    def __init__(self, faults: dict[int, Any]) -> None:
        self.faults, self.calls, self.keys = faults, 0, []

    def __call__(self, params: Arrays) -> Any:
        self.calls += 1
        self.keys.append(dz.query_key())
        fault = self.faults.get(self.calls - 1, rough)
        if isinstance(fault, Exception):
            raise type(fault)(*fault.args)
        return fault(params) if callable(fault) else fault


class FakeExecutor(Executor):
    """Holds calls back; :class:`FakeClock` lets them go, in an order drawn from ``seed``, a second each.

    Args:
        workers: calls that are answered at the same time.
        hang: says of the number of a call (from 0) whether it is never answered.
        breaks: number of the call at which the executor breaks down, like a process pool that lost a worker.
    """

    def __init__(
        self, workers: int = 3, *, seed: int = 0, hang: Callable[[int], bool] = lambda n: False, breaks: int = -1
    ) -> None:
        self._max_workers = workers
        self.messages: list[Message] = []
        self.most = 0
        self.starts: list[float] = []
        self.clock: FakeClock | None = None
        self.broken = False
        self._random = random.Random(seed)
        self._hang, self._breaks = hang, breaks
        self._pending: list[tuple[int, Future[Any], Callable[..., Any], Message]] = []

    def submit(self, fn: Callable[..., Any], message: Message) -> Future[Any]:  # type: ignore[override]
        if self.broken:
            raise BrokenExecutor("a worker died")
        future: Future[Any] = Future()
        if not isinstance(message, Message):
            future.set_result(None)
            return future
        self._pending.append((len(self.messages), future, fn, message))
        self.messages.append(message)
        self.most = max(self.most, len(self._pending))
        if self.clock is not None:
            self.starts.append(self.clock.time)
        return future

    def step(self) -> bool:
        """Answer one call that does not hang; False if there is none."""
        ready = [item for item in self._pending if not self._hang(item[0])]
        if not ready:
            return False
        number, future, fn, message = self._random.choice(ready)
        if number == self._breaks:
            self.broken = True
            pending, self._pending = self._pending, []
            for _, lost, _, _ in pending:
                lost.set_exception(BrokenExecutor("a worker died"))
            return True
        self._pending.remove((number, future, fn, message))
        if future.set_running_or_notify_cancel():
            future.set_result(fn(message))
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.broken = True


class FakeClock(Clock):
    """Time passes only while somebody waits."""

    def __init__(self, *executors: FakeExecutor) -> None:
        self.time = 0.0
        self.executors = list(executors)
        for executor in executors:
            executor.clock = self

    def now(self) -> float:
        return self.time

    def take(self, queue: SimpleQueue[Future[Any]], seconds: float) -> Future[Any] | None:
        if seconds > 0 and queue.empty() and not any(executor.step() for executor in self.executors):
            self.time += seconds
        elif seconds > 0:
            self.time += min(seconds, 1e-3)
        try:
            return queue.get_nowait()
        except Empty:
            return None


def evaluator(
    *executors: FakeExecutor,
    remade: bool = False,
    ahead: bool = False,
    policy: dz.QueryPolicy | None = None,
    **options: Any,
) -> dz.ExecutorEvaluator:
    """On fake executors and fake time, one call in flight for each worker unless ``ahead``.

    With ``remade`` the executors come one after the other from a factory.
    """
    policy = policy or dz.QueryPolicy()
    workers = getattr(executors[0], "_max_workers", None)
    if not ahead and policy.in_flight is None:
        policy = replace(policy, in_flight=workers)
    coming = iter(executors)
    made = dz.ExecutorEvaluator((lambda: next(coming)) if remade else executors[0], policy=policy, **options)
    made._clock = FakeClock(*executors)
    return made


def estimate(evaluator: Any, black_box: dz.BlackBox, *batch: Any, stencil: dz.Stencil = dz.FORWARD) -> dz.Estimate:
    return dz.CGE(black_box, evaluator=evaluator, stencil=stencil, step_size=0.5).estimate(*batch)


def same(found: dz.Estimate, expected: dz.Estimate) -> bool:
    """Bit for bit."""
    assert found.gradients.keys() == expected.gradients.keys()
    pairs = [(found.gradients[name], expected.gradients[name]) for name in expected.gradients]
    return torch.equal(found.loss, expected.loss) and all(torch.equal(a, b) for a, b in pairs)


NAN = math.nan
