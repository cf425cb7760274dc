"""Locks against real processes: the second is told who holds it, and what a killed one has left is taken over."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepzero import folder_lock
from deepzero.errors import RunFolderError
from deepzero.folder_lock import LOCK, FileLock, HeldFolder, require_unused

HOLD = """
import os, sys, time
from pathlib import Path
from deepzero.folder_lock import HeldFolder
held = HeldFolder.take(Path(sys.argv[1]))
if "fork" in sys.argv and (child := os.fork()) == 0:
    time.sleep(60)
print(child if "fork" in sys.argv else 0, flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds a folder, and its child, if it has one."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if child:
                os.kill(child, signal.SIGKILL)


def test_the_second_process_is_told_who_holds_it_and_a_killed_one_is_no_obstacle(tmp_path: Path) -> None:
    with another_process(tmp_path) as (process, _):
        with pytest.raises(RunFolderError) as refused:
            HeldFolder.take(tmp_path)
        host = socket.gethostname()
        words = f"{tmp_path} is in use by process {process.pid} on {host} since 20"
        assert str(refused.value).startswith(words)
        ways = f"wait for it to end, or stop it (process {process.pid} on {host}), or choose another --out"
        assert str(refused.value).endswith(ways)
        with pytest.raises(RunFolderError, match="is in use by"):
            require_unused(tmp_path)
    assert (tmp_path / LOCK).exists()
    require_unused(tmp_path)
    HeldFolder.take(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_that_outlives_its_parent_does_not_hold_on(tmp_path: Path) -> None:
    with another_process(tmp_path, "fork") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        HeldFolder.take(tmp_path).release()


def test_a_forked_child_does_not_release_what_its_parent_holds(tmp_path: Path) -> None:
    held = HeldFolder.take(tmp_path)
    child = os.fork()
    if child == 0:
        held.release()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()
    assert not FileLock(tmp_path / LOCK).acquire()
    held.release()
    assert FileLock(tmp_path / LOCK).is_free()


def test_a_lock_that_nobody_refers_to_is_released(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / LOCK)
    assert lock.acquire()
    assert not FileLock(tmp_path / LOCK).acquire()
    del lock
    assert FileLock(tmp_path / LOCK).acquire()


def test_looking_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert FileLock(tmp_path / LOCK).is_free()
    (tmp_path / LOCK).unlink()
    require_unused(tmp_path)
    require_unused(tmp_path / "none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "[" * 4000])
def test_a_holder_that_has_not_signed_is_another_process(tmp_path: Path, content: str) -> None:
    lock = FileLock(tmp_path / LOCK)
    assert lock.acquire()
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(RunFolderError, match="is in use by another process; wait for it to end, or choose"):
        require_unused(tmp_path)
    lock.release()


def test_a_file_system_without_locks_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level(logging.WARNING, logger="deepzero"):
        one, two = HeldFolder.take(tmp_path), HeldFolder.take(tmp_path)
    assert one.is_there()
    assert two.is_there()
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"the file system of {tmp_path} has no locks"
    ]
    two.release()
    one.release()


def test_a_full_disk_leaves_a_lock_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_lock.os, "write", full)
    held = HeldFolder.take(tmp_path)
    with pytest.raises(RunFolderError, match="in use by another process"):
        HeldFolder.take(tmp_path)
    held.release()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(RunFolderError, match="is a link, where a lock file should be"):
        HeldFolder.take(tmp_path / "folder")
    assert not (tmp_path / "victim").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says where an open folder is")
def test_a_folder_is_found_where_it_was_moved(tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    held = HeldFolder.take(tmp_path / "a" / "run")
    assert held.is_there()
    (tmp_path / "a").rename(tmp_path / "b")
    assert not held.is_there()
    assert held.moved_to() == tmp_path / "b" / "run"
    held.release()
