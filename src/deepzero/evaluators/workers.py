"""Worker threads for chunks: one intra-op thread each, so that results never depend on how many there are."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Iterable[T], workers: int, device: torch.device) -> list[R]:
    """``[function(item) for item in items]`` without autograd, on ``workers`` threads where the device is a CPU.

    An error comes out, that of the first item where there are several, and nothing is begun after it. A single worker
    is the calling thread. PyTorch's own thread count is as before afterwards.
    """

    def quiet(item: T) -> R:
        with torch.no_grad():
            return function(item)

    if device.type != "cpu":
        return [quiet(item) for item in items]
    if workers == 1:
        with one_thread():
            return [quiet(item) for item in items]
    failed: dict[int, BaseException] = {}

    def unless_failed(place: int, item: T) -> R:
        if failed:
            raise CancelledError
        try:
            return quiet(item)
        except BaseException as error:
            failed[place] = error
            raise

    threads, pool = torch.get_num_threads(), _pool(workers)
    futures = [pool.submit(unless_failed, place, item) for place, item in enumerate(items)]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
        torch.set_num_threads(threads)
    if failed:
        raise failed[min(failed)]
    return [future.result() for future in futures]


def begun(function: Callable[[], R], workers: int) -> Future[R]:
    """A call on the thread of a worker, without autograd, while the calling thread goes on with other things."""
    return _pool(workers).submit(torch.no_grad()(function))


def as_a_worker() -> bool:
    """True if the calling thread computes as a worker does: in none of PyTorch's modes."""
    return not (torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


@functools.lru_cache(maxsize=2)
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads are kept from step to step: what libraries set up for a thread of theirs costs more than a small step."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,), thread_name_prefix="deepzero")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of its parent's threads


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread for a block: what a sum gives then does not depend on how many there are outside of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_batching_advice() -> Iterator[None]:
    """A block in which ``vmap`` does not print which operations it cannot batch and loops over."""
    show: Callable[[bool], None] = getattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled")  # noqa: B009
    show(False)
    try:
        yield
    finally:
        show(True)  # PyTorch's default; it can be set, not asked for
