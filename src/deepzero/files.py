"""Files that are either whole or not there (temporary name, fsync, rename), and JSON."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepzero.errors import RunFolderError

TEMPORARY = ".tmp"


def write_file(path: Path, data: bytes) -> None:
    """Write a new file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Give ``path`` new content atomically: after a crash it holds the old content or the new one, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def leftovers(path: Path) -> list[Path]:
    """Temporary files of :func:`replace_file` for ``path``, of processes that were killed before the rename."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"))


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
