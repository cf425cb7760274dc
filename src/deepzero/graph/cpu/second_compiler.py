"""Compilation of loops in a second process, which fills numba's cache while the first one imports and exports.

numba compiles one function of a process at a time. A loop is compiled by whoever claims it first
(:mod:`~deepzero.graph.cpu.compilation`), so the two share the work: the first process compiles what it needs next, the
second one begins with what is needed last. It takes the loops from the words of its command line, ends with them or
with its parent, and imports no PyTorch.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import numba
import numpy as np

from deepzero.folder_lock import FileLock
from deepzero.graph.cpu.compilation import is_kept, leave_to_others
from deepzero.graph.cpu.convolution_loops import Bands, BandTail, Matrix
from deepzero.graph.cpu.winograd_loops import Squares
from deepzero.orphans import end_with_parent

log = logging.getLogger("deepzero")

SWITCH = "DEEPZERO_COMPILE_AHEAD"
"""The variable of the environment that allows no second process where it is 0."""
MODULES = {
    "slices": "convolution_loops",
    "convolve": "convolution_loops",
    "follow": "convolution_loops",
    "convolve_by_squares": "winograd_loops",
    "label_losses_across": "row_loops",
    "label_losses_of_column": "row_loops",
    "relu": "activation_loops",
}
"""Loops that take long, and are needed by many networks, with their modules."""
FEWEST = 3
"""Loops from which on a second process, which takes half a second to start, is of use."""

NICENESS = 5
"""By how much the second process gives way. PyTorch's threads wait for each other at the end of each operation: where
one of them has to share its core in equal parts, they take twice as long. It still gets a quarter of a busy core."""

_asked: set[tuple[str, str]] = set()


def arguments_of(name: str, dtype: str) -> tuple[Any, ...]:
    """Arguments of the types that a loop is called with, by their names: flat arrays of a dtype, but for these."""
    line, matrix, cube = (np.empty((0,) * dimensions, dtype) for dimensions in (1, 2, 3))
    index, number = np.empty(0, np.int64), np.dtype(dtype).type(0)
    numbers: dict[Any, Any] = {int: 0, bool: False, tuple[int, int]: (0, 0), tuple[int, int, int]: (0, 0, 0)}

    def empty(record: type[Any]) -> Any:
        return record(**{field: numbers.get(kind, index) for field, kind in get_type_hints(record).items()})

    bands, squares = empty(Bands), empty(Squares)
    tail: dict[str, Any] = dict.fromkeys(BandTail._fields, line) | {"behind": (0, 0), "window": (0,) * 8}
    tail |= dict.fromkeys(("slope", "tilt", "shift"), matrix)
    others: dict[str, Any] = {"bands": bands, "squares": squares, "tail": BandTail(**tail)}
    others |= {"matrix": Matrix(bands, line, line, line), "sums": np.empty(0), "copied": False}
    others |= dict.fromkeys(("offsets", "channels", "corners", "labels", "entries", "rows"), index)
    others |= dict.fromkeys(("apart", "batch", "count"), 0) | dict.fromkeys(("slope", "rest"), number)
    if name == "follow":
        others["rows"] = np.empty((0, 0), np.int64)
    elif name == "label_losses_across":
        others |= dict.fromkeys(("columns", "p", "logs", "out"), matrix) | {"delta": cube}
    elif name == "label_losses_of_column":
        others |= dict.fromkeys(("delta", "columns", "p", "logs", "out"), matrix)
    elif name == "relu":
        others |= dict.fromkeys(("delta", "z", "out"), matrix)
    return tuple(others.get(parameter, line) for parameter in signature(loop_of(name).py_func).parameters)


def loop_of(name: str) -> Any:
    """A loop by its name."""
    return getattr(importlib.import_module(f"{__package__}.{MODULES[name]}"), name)


def signature_of(name: str, dtype: str) -> tuple[Any, ...]:
    """The types that a loop is compiled for."""
    loop = loop_of(name)
    return tuple(loop.typeof_pyval(argument) for argument in arguments_of(name, dtype))


def start(names: Iterable[str], dtypes: Iterable[str]) -> subprocess.Popen[bytes] | None:
    """Let a second process compile loops, if they are not kept yet and there is a core for it; once for each of them.

    Args:
        names: of loops, in the order in which this process will need them.
        dtypes: the precisions, in that order.
    """
    order = [(name, dtype) for dtype in dtypes for name in names]
    new = [loop for loop in order if loop not in _asked]
    _asked.update(new)
    if len(new) < FEWEST or not _allowed():
        return None
    missing = [(name, dtype) for name, dtype in new if not is_kept(loop_of(name), signature_of(name, dtype))]
    return _started(missing[::-1]) if len(missing) >= FEWEST else None


def _allowed() -> bool:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    python = Path(sys.executable or "").stem.startswith("python")  # not a program that has Python inside
    return cores > 1 and python and os.environ.get(SWITCH) != "0"


def _started(loops: list[tuple[str, str]]) -> subprocess.Popen[bytes] | None:
    """The second process, which finds the same packages and the same cache, and runs none of the user's code."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "PYTHONSAFEPATH": "1",
    }
    if numba.config.CACHE_DIR:
        variables["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR
    words = [str(os.getpid()), *(f"{name}:{dtype}" for name, dtype in loops)]
    nothing: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        process = subprocess.Popen([sys.executable, "-m", __spec__.name, *words], env=variables, **nothing)
    except OSError as error:
        log.debug("no second process compiles: %s", error)
        return None
    log.debug("process %d compiles %d loops ahead", process.pid, len(loops))
    threading.Thread(target=process.wait, name="deepzero-compiler", daemon=True).start()
    atexit.register(_end, process, os.getpid())
    return process


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the second process with the first one; a fork of that one does nothing."""
    if os.getpid() == owner and process.poll() is None:
        process.kill()
        process.wait()


def compile_all(parent: int, loops: Iterable[str]) -> None:
    """Compile what no other process compiles, unless another second process is at it, as long as the parent lives.

    A loop that cannot be kept, on a full disk, would be of use to nobody: then this ends.
    """
    end_with_parent()
    if os.getppid() != parent:
        return
    leave_to_others()
    only = FileLock(Path(loop_of("relu")._cache.cache_path) / f"{Path(__file__).stem}.lock", needed=False)
    if not only.acquire():
        return
    try:
        for name, dtype in (loop.split(":") for loop in loops):
            with suppress(Exception):  # of another's claim; what is wrong with a loop, the first process says
                loop_of(name).compile(signature_of(name, dtype))
                if not is_kept(loop_of(name), signature_of(name, dtype)):
                    return
    finally:
        only.release()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    compile_all(int(sys.argv[1]), sys.argv[2:])
