"""Compilation of loops by numba: on one thread, free of the GIL, and kept on the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

log = logging.getLogger("deepzero")
FOLDER = Path(__file__).parent


class _Compiling(event.Listener):  # type: ignore[misc]
    """Says once that loops are compiled, which happens where numba finds none in its cache on the disk."""

    announced = False

    def on_start(self, event: Any) -> None:
        """A function is about to be compiled."""
        if not self.announced and event.data["dispatcher"].py_func.__module__.startswith(f"{__package__}."):
            self.announced = True
            log.info("compiling loops for this machine, once: some seconds")

    def on_end(self, event: Any) -> None:
        """It is compiled."""


event.register("numba:compile", _Compiling())


def _stamp() -> tuple[Any, ...]:
    """Size and time of every source file of this folder."""
    sources = [path.stat() for path in sorted(FOLDER.glob("*.py"))]
    return tuple((source.st_mtime, source.st_size) for source in sources)


STAMP = _stamp()


OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
"""Sums may be reordered and contracted, NaN and infinities stay what they are."""


def compiled(function: Callable[..., Any]) -> Any:
    """A loop. What numba keeps of it on the disk holds as long as no file of this folder changes.

    By itself it looks at the function's own file alone, not at those of the functions that it calls.
    """
    return _kept(njit(cache=True, **OPTIONS)(function))


def borrowing(function: Callable[..., Any]) -> Any:
    """A loop that makes no arrays: references are not counted, which costs more than a short row of work."""
    return _kept(njit(cache=True, _nrt=False, **OPTIONS)(function))


def part(function: Callable[..., Any]) -> Any:
    """A part of such a loop, compiled with it."""
    return njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)


def _kept(loop: Any) -> Any:
    loop._cache._cache_file._source_stamp = STAMP
    return loop
