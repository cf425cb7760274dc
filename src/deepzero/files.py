"""Files that are either whole or not there (temporary name, fsync, rename), and JSON."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepzero.errors import RunFolderError

TEMPORARY = ".tmp"
RANDOM = 8
"""Random bytes in a temporary name: nobody can guess it and put a link there."""
STALE = 24 * 3600.0
"""Seconds after which a temporary file is taken for that of a killed process: none is written for so long."""
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
"""Answers of systems that cannot sync a folder, or not one that may not be read."""


def write_file(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a new file down to the disk; what stands at its place already, a link above all, is an error.

    Args:
        path: of the file.
        data: its content.
        mode: its permissions; by default those of every new file of this process.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:  # noqa: PTH123 - a descriptor
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give ``path`` new content atomically: after a crash it holds the old content or the new one, never a mixture.

    The permissions of a file that is replaced stay; a link is replaced, not followed.
    """
    temporary = temporary_name(path)
    try:
        write_file(temporary, data, mode=_permissions(path))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    for old in leftovers(path):
        with suppress(OSError):
            if time.time() - old.lstat().st_mtime > STALE:
                old.unlink()


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody can know before."""
    return path.with_name(f".{path.name}.{secrets.token_hex(RANDOM)}{TEMPORARY}")


def _permissions(path: Path) -> int | None:
    """The permissions of a file; None where there is none."""
    try:
        found = path.lstat().st_mode
    except OSError:
        return None
    return stat.S_IMODE(found) if stat.S_ISREG(found) else None


def leftovers(path: Path) -> list[Path]:
    """Temporary files of :func:`replace_file` for ``path``, of processes that were killed before the rename."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"))


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder that this process alone writes in."""
    name = re.compile(rf"\..+\.[0-9a-f]{{{2 * RANDOM}}}{re.escape(TEMPORARY)}")
    for path in folder.glob(f".*{TEMPORARY}"):
        if name.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and all above it that are not there, so that they survive a power cut."""
    missing = [path, *path.parents]
    missing = missing[: next((k for k, place in enumerate(missing) if place.exists()), len(missing))]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # it may be written, but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def to_json(value: Any) -> bytes:
    """JSON that a person can read; NaN and infinity, which JSON does not have, are refused."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """The value with None in place of every number that JSON does not have: NaN and infinity.

    Example:
        >>> finite({"loss": float("nan"), "layers": [1.0, float("inf")]})
        {'loss': None, 'layers': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested objects by dotted names.

    Example:
        >>> flat({"model": {"name": "mlp", "hidden": [8]}, "seed": 0})
        {'model.name': 'mlp', 'model.hidden': [8], 'seed': 0}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        values.update(flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return values


def json_object(path: Path, *, advice: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RunFolderError: there is none; the message ends in ``advice``.
    """
    hint = f"; {advice}" if advice else ""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}{hint}") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} should hold a JSON object, but holds {type(value).__name__}{hint}")
    return value
