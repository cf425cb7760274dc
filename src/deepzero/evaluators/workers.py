"""Worker threads for chunks: one intra-op thread each, so that results never depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Iterable[T], workers: int, device: torch.device) -> list[R]:
    """``[function(item) for item in items]`` without autograd, on ``workers`` threads where the device is a CPU.

    PyTorch's own thread count is as before afterwards.
    """

    def quiet(item: T) -> R:
        with torch.no_grad():
            return function(item)

    if device.type != "cpu":
        return [quiet(item) for item in items]
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,), thread_name_prefix="deepzero")
    try:
        return [future.result() for future in [pool.submit(quiet, item) for item in items]]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


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
