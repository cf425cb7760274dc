"""Compilation of loops by numba: on one thread, free of the GIL, and kept on the disk."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event
from numba.core.caching import IndexDataCacheFile

from deepzero.errors import RunFolderError
from deepzero.folder_lock import FileLock

log = logging.getLogger("deepzero")
FOLDER = Path(__file__).parent
PATIENCE = 60.0
"""Seconds that a loop is waited for which another process compiles; the longest takes a few."""
PAUSE = 0.02
"""Seconds between two looks at what the other process does."""


class ClaimedError(Exception):
    """Another process compiles a loop, and this one need not have it."""


@cache
def _announce() -> None:
    log.info("compiling loops for this machine, once: some seconds")


class _Compiling(event.Listener):  # type: ignore[misc]
    """Says once that loops are compiled, which happens where numba finds none in its cache on the disk."""

    def on_start(self, event: Any) -> None:
        """A function is about to be compiled."""
        if event.data["dispatcher"].py_func.__module__.startswith(f"{__package__}."):
            _announce()

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


def _kept(loop: Any) -> Any:
    """A loop with the files of its own, whose claims end with each attempt to compile it."""
    kept, compile_it = loop._cache, loop.compile
    file = kept._cache_file = _CheckedFile(kept._cache_path, kept._impl.filename_base, STAMP)

    def compile_once(signature: Any) -> Any:
        try:
            return compile_it(signature)
        finally:
            file.release()

    loop.compile = compile_once
    return loop


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """The files that numba keeps of a loop, each with a checksum at its end.

    They hold pickles and machine code: what is damaged is not looked into, and the loop is compiled again. The checksum
    finds accidents, and is no seal: whoever may write into that folder can put code there, as into any of Python's own.

    Processes share them. Whoever finds that a loop is not there claims it, compiles and keeps it; others wait for that
    (:data:`PATIENCE`). A claim is a lock, so it ends with its process. Code lies under a name of its own for each
    signature, so that two processes cannot put theirs in each other's place.
    """

    patience = PATIENCE

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._claims: list[FileLock] = []

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

    def load(self, key: Any) -> Any:
        """The loop as it is kept, or None: then this process is the one to compile it.

        Raises:
            ClaimedError: another process compiles it, and ``patience`` is 0.
        """
        found = super().load(key)
        if found is None and self._claim(self._name(key), self.patience):
            found = super().load(key)  # another process may have compiled it meanwhile
        return found

    def save(self, key: Any, data: Any) -> None:
        """Keep a loop; where that is not possible, it is compiled again by the next process."""
        try:
            name = self._name(key)
            self._save_data(name, data)
            self._claim(self._index_name, PATIENCE)
            self._save_index({**self._load_index(), key: name})
        except OSError as error:
            log.debug("a compiled loop is not kept: %s", error)
        finally:
            self.release()

    def has(self, key: Any) -> bool:
        """True if a loop is kept, as the index says."""
        return key in self._load_index()

    def release(self) -> None:
        """Let others compile what this process does not."""
        while self._claims:
            self._claims.pop().release()

    def _name(self, key: Any) -> str:
        """The name of the file of a signature's code."""
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return f"{self._index_name.removesuffix('.nbi')}.{digest}.nbc"

    def _claim(self, name: str, patience: float) -> bool:
        """Wait until no other process works at a file; False if that takes too long, or nothing can be locked there."""
        lock, start = FileLock(Path(self._data_path(f"{name}.lock")), needed=False), time.monotonic()
        try:
            while not lock.acquire():
                if not patience:
                    raise ClaimedError(name)
                if time.monotonic() - start >= patience:
                    log.debug("%s is in use by %s for too long", name, lock.holder())
                    return False
                _announce()
                time.sleep(PAUSE)
        except (OSError, RunFolderError) as error:
            log.debug("a compiled loop cannot be locked: %s", error)
            return False
        self._claims.append(lock)
        return True


def leave_to_others() -> None:
    """From now on, what another process compiles is no business of this one: :class:`ClaimedError` says so."""
    _CheckedFile.patience = 0.0


def is_kept(loop: Any, signature: Any) -> bool:
    """True if the loop need not be compiled for a signature."""
    kept = loop._cache
    return bool(kept._cache_file.has(kept._index_key(signature, loop.targetctx.codegen())))


def _require_whole(path: str) -> None:
    """Raise :class:`OSError` unless the checksum at the end of a file is that of its content."""
    content = Path(path).read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise OSError(f"{path} is damaged, or of an earlier version")
