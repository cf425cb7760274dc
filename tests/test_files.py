"""Files that are whole or not there, under names that nobody can know before."""

from __future__ import annotations

import ast
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from deepzero import files
from deepzero.errors import RunFolderError
from deepzero.files import (
    clear_leftovers,
    leftovers,
    make_folder,
    read_at_most,
    read_from,
    replace_file,
    sync_folder,
    tensor_bytes,
    write_file,
)

PACKAGE = Path(__file__).parents[1] / "src" / "deepzero"
ELSEWHERE = {("measure/peak_memory.py", "write_text")}
"""Not a file: a switch of the system."""
posix = pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")


def test_a_temporary_name_is_another_one_each_time_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    write = files.write_file

    def noted(path: Path, data: bytes, *, mode: int | None = None) -> None:
        names.append(path.name)
        write(path, data, mode=mode)

    monkeypatch.setattr(files, "write_file", noted)
    for content in (b"one", b"two"):
        replace_file(tmp_path / "summary.json", content)
        assert (tmp_path / "summary.json").read_bytes() == content
    assert len({*names}) == 2
    assert not any(str(os.getpid()) in name.split(".")[:-2] for name in names)
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@posix
def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at the temporary name, should somebody know it, nor at the file's own."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    (tmp_path / ".a.known.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "a", b"new")
    (tmp_path / "b").symlink_to(victim)
    replace_file(tmp_path / "b", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "b").is_symlink()
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "c", b"new")


@posix
def test_permissions_are_those_of_a_new_file_or_of_the_one_before(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        replace_file(tmp_path / "old", b"")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "old")] == [0o640, 0o604]


def test_every_new_parent_is_synced_into_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 3
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


@posix
def test_a_system_that_cannot_sync_folders_is_put_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(number: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EINVAL)
    sync_folder(tmp_path)
    failing(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


def test_leftovers_of_yesterday_go_when_the_file_is_written_again(tmp_path: Path) -> None:
    old, fresh = (tmp_path / f".report.html.{digit * 16}.tmp" for digit in "01")
    for path, age in ((old, 2 * files.STALE), (fresh, 60.0)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    replace_file(tmp_path / "report.html", b"")
    assert leftovers(tmp_path / "report.html") == [fresh]


def test_only_names_of_ours_are_cleared(tmp_path: Path) -> None:
    kept = [".hidden", ".notes.tmp", ".a.123.tmp", "report.tmp"]
    for name in (*kept, f".run.json.{'0f' * 8}.tmp"):
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(kept)


def writes(tree: ast.Module) -> set[str]:
    """Calls that write a file or make folders by themselves."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if (
            name in ("write_text", "write_bytes", "save_file", "makedirs", "mkstemp", "NamedTemporaryFile")
            or (name == "open" and any(word[:1] in ("w", "x") for word in words))
            or (name == "mkdir" and any(word.arg == "parents" for word in node.keywords))
        ):
            found.add(name)
    return found


def test_every_lasting_file_is_written_here() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        if path.name != "files.py"
        for name in writes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ELSEWHERE


@pytest.mark.parametrize("read", [lambda path: read_at_most(path, 10), tensor_bytes])
@pytest.mark.parametrize("there", [True, False], ids=["a folder", "nothing"])
def test_what_is_not_there_or_no_file_is_named_with_the_advice(read: Any, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    if there:
        path.mkdir()
    with (
        pytest.raises(RunFolderError, match=r"kept\.json cannot be read: .*; put it back$"),
        read_from(path, advice="put it back"),
    ):
        read(path)
