"""Compilation of loops by numba: on one thread, free of the GIL, and kept on the disk."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event
from numba.core.caching import IndexDataCacheFile

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
    cache = loop._cache
    cache._cache_file = _CheckedFile(cache._cache_path, cache._impl.filename_base, STAMP)
    return loop


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """The files that numba keeps of a loop, each with a checksum at its end.

    They hold pickles and machine code: what is damaged is not looked into, and the loop is compiled again. The checksum
    finds accidents, and is no seal: whoever may write into that folder can put code there, as into any of Python's own.
    """

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        with super()._open_for_write(filepath) as file:
            content = io.BytesIO()
            yield content
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def _load_index(self) -> dict[Any, str]:
        try:
            _require_whole(self._index_path)
            found: dict[Any, str] = super()._load_index()
        except Exception as error:  # of pickle, of many kinds
            log.debug("what numba kept of a loop is not used: %s", error)
            return {}
        return found

    def _load_data(self, name: str) -> Any:
        _require_whole(self._data_path(name))
        return super()._load_data(name)

    def save(self, key: Any, data: Any) -> None:
        """Keep a loop; where that is not possible, it is compiled again by the next process."""
        try:
            super().save(key, data)
        except OSError as error:
            log.debug("a compiled loop is not kept: %s", error)


def _require_whole(path: str) -> None:
    """Raise :class:`OSError` unless the checksum at the end of a file is that of its content."""
    content = Path(path).read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise OSError(f"{path} is damaged, or of an earlier version")
