"""A process that another one started, and that ends with it, however that one ends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

PATIENCE = 1.0
"""Seconds between two looks at the parent where no pipe tells of its end."""

_watched: set[int] = set()
"""Processes that watch their parent already: a forked child is another one than its parent, which has the same set."""


def end_with_parent(*left_behind: str | Path) -> None:
    """Let this process end at once when its parent has ended, ``SIGKILL`` included; of no effect a second time.

    For workers, whose answers nobody would read. A pool's workers otherwise wait for their next call for ever: each of
    them holds both ends of the pipe that calls come by. (Linux's ``PR_SET_PDEATHSIG`` will not do: it tells of the end
    of the thread that started the worker.)

    Args:
        *left_behind: folders of the parent to remove then, such as that of a fork server's socket.
    """
    watch_parent(partial(_end, left_behind))


def watch_parent(then: Callable[[], object]) -> None:
    """Call a function, in a thread of its own, when the parent of this process has ended; the first call counts."""
    if os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    threading.Thread(target=_watch, args=(os.getppid(), then), name="deepzero-parent", daemon=True).start()


def _watch(parent: int, then: Callable[[], object]) -> None:
    started_by = multiprocessing.parent_process()
    while os.getppid() == parent:  # the parent itself, or the fork server between it and this process
        if started_by is None:
            time.sleep(PATIENCE)
        elif wait([started_by.sentinel], timeout=PATIENCE):
            break
    then()


def _end(left_behind: tuple[str | Path, ...]) -> None:
    for folder in left_behind:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
