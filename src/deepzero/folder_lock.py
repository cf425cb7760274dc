"""A folder that one process at a time works in: its lock, the file that says who holds it, where the folder went."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from deepzero.errors import RunFolderError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
"""The lock file of a folder."""
TRIES, PAUSE = 5, 0.02
"""Attempts at a lock, and seconds between them: whoever only looks whether it is free holds it for an instant."""
FAR = 1 << 30
"""The byte that is locked where a lock is of bytes, behind all that the file holds, so that everybody can read it."""
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
"""Answers of file systems without locks."""
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
LARGEST = 4096
"""Bytes of a lock file that are read."""

log = logging.getLogger("deepzero")


class FileLock:
    """A lock on a file, which the system drops when the process ends, however that happens.

    The file says who holds it: host, process, since when, and its command. It is deleted when the lock is released;
    one that a killed process has left is taken over. A forked child has no part in the locks of its parent. Where the
    file system has no locks, a warning says so once, and the lock is taken for free.

    Args:
        path: of the file, in a folder that is there.
        needed: whether that warning is given: False where a lock spares work, and guards nothing.
    """

    def __init__(self, path: Path, *, needed: bool = True) -> None:
        self.path = path
        self.needed = needed
        self._descriptor: int | None = None
        self._process = os.getpid()

    @property
    def held(self) -> bool:
        """True from :meth:`acquire` to :meth:`release`, in the process that acquired it."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock; False if another process, or another part of this one, holds it.

        Raises:
            RunFolderError: a link stands in its place.
            OSError: the folder is not there.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE)
            descriptor = self._open()
            if descriptor is None:
                return True  # nothing can be written there anyway
            try:
                if self._is_locked(descriptor) and _same(self.path, descriptor):
                    self._descriptor, self._process, descriptor = descriptor, os.getpid(), -1
                    _held.add(self)
                    self._sign()
                    return True
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        return False

    def release(self) -> None:
        """Let others have it, and delete the file; nothing in a forked child."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or os.getpid() != self._process:
            return
        _held.discard(self)
        with suppress(OSError):
            if _same(self.path, descriptor):
                self.path.unlink()
        os.close(descriptor)

    def forget(self) -> None:
        """Close this process's copy of what the parent holds; the parent goes on holding it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.release()

    def is_free(self) -> bool:
        """True if nobody holds it; nothing is changed."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return True
        try:
            return self._is_locked(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def holder(self) -> str:
        """The process that holds it, in words."""
        found = self._read()
        if found is None:
            return "another process"
        since = f"since {found['since']}" if "since" in found else ""
        command = f"({found['command']})" if "command" in found else ""
        mine = "this process itself," if self._is_this_process(found) else ""
        words = (mine, f"process {found['process']} on {found['host']}", since, command)
        return " ".join(word for word in words if word)

    def advice(self) -> str:
        """The ways out for whoever comes second."""
        found = self._read()
        if found is None:
            return "wait for it to end, or choose another --out"
        if self._is_this_process(found):
            return "wait for it to end, or choose another --out (out=...)"
        return (
            f"wait for it to end, or stop it (process {found['process']} on {found['host']}), or choose another --out"
        )

    def _open(self) -> int | None:
        """The open file, made if it is not there; None where this process may write nothing."""
        safe = getattr(os, "O_NOFOLLOW", 0)
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | safe, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunFolderError(f"{self.path} is a link, where a lock file should be; take it away") from error
            if error.errno not in NOT_WRITABLE:
                raise
        try:
            return os.open(self.path, os.O_RDONLY | safe)  # of another user
        except OSError:
            return None

    def _is_locked(self, descriptor: int, *, shared: bool = False) -> bool:
        """Try to lock an open file."""
        try:
            _lock(descriptor, shared=shared)
        except OSError as error:
            if error.errno in NO_LOCKS:
                if self.needed:
                    _warn_of_no_locks(str(self.path.parent))
                return True
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

    def _sign(self) -> None:
        """Write down who holds it; on a full disk nobody is named."""
        assert self._descriptor is not None
        holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            "command": shlex.join(sys.argv)[:500],
        }
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(holder).encode())

    def _read(self) -> dict[str, Any] | None:
        """The words of the holder; None if that cannot be read."""
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(LARGEST))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not {"host", "process"} <= found.keys():
            return None
        return {str(name): " ".join(str(value).split())[:500] for name, value in found.items()}

    def _is_this_process(self, found: dict[str, Any]) -> bool:
        return (found["host"], found["process"]) == (socket.gethostname(), str(os.getpid()))


def _lock(descriptor: int, *, shared: bool) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _same(path: Path, descriptor: int) -> bool:
    """True if a path leads to an open file or folder."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


@cache
def _warn_of_no_locks(folder: str) -> None:
    log.warning(
        "the file system of %s has no locks, so two runs in one folder are not told from each other: see to it that "
        "there is only one",
        folder,
    )


class HeldFolder:
    """A folder that this process alone works in, from :meth:`take` to :meth:`release`.

    Args:
        path: of the folder, which is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)
        self._folder: int | None = None

    @classmethod
    def take(cls, path: Path) -> Self:
        """Hold a folder.

        Raises:
            RunFolderError: another process holds it; the message names it and says what to do.
            OSError: it is not there.
        """
        held = cls(path)
        if not held._lock.acquire():
            raise in_use(path)
        if os.name == "posix":
            with suppress(OSError):
                held._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        return held

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    def is_there(self) -> bool:
        """True while the path leads to the folder that was taken."""
        if self._folder is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._folder))
        except OSError:
            return False

    def moved_to(self) -> Path | None:
        """The new place of the folder; None if it was deleted, or the system does not say."""
        if self._folder is None:
            return None
        with suppress(OSError):
            found = Path(f"/proc/self/fd/{self._folder}").readlink()
            if os.path.samestat(found.stat(), os.fstat(self._folder)):
                return found
        return None


def in_use(path: Path) -> RunFolderError:
    """The error for whoever comes second to a folder."""
    lock = FileLock(path / LOCK)
    return RunFolderError(f"{path} is in use by {lock.holder()}; {lock.advice()}")


def require_unused(path: Path) -> None:
    """Raise :class:`RunFolderError` if a process works in a folder."""
    if not FileLock(path / LOCK).is_free():
        raise in_use(path)


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()
"""Locks that a fork would copy: a copy would hold on after the parent has ended."""


def _forget_all() -> None:
    """In a forked child: close the copies."""
    for lock in list(_held):
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
