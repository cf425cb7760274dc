"""Files that are either whole or not there (temporary name, fsync, rename), and JSON and tensors read with bounds."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deepzero.errors import DeepZeroError, RunFolderError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".tmp"
JSON_BYTES = 1 << 26
"""Bytes of a JSON file, at most: a hundred times the largest of the recorded results of reproductions, 0.6 MB."""
LINE_BYTES = 1 << 20
"""Bytes of a line of measurements, at most. One names every layer; a layer takes some 60 bytes."""
DEPTH = 64
"""Lists and objects within each other in JSON, at most; a configuration has 6, the state of a checkpoint 12."""
DIGITS = 40
"""Digits of a whole number in JSON, with its sign, at most: states of random generators have 128 bits, which are 39."""
HEADER_BYTES = 1 << 24
"""Bytes of the header of a safetensors file, at most: a tensor takes some 150, so that 100,000 fit."""
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


def read_at_most(path: Path, limit: int) -> bytes:
    """The content of a file, which has a size that its kind allows.

    Raises:
        OSError: it cannot be read, or is no file (a folder, a pipe, a device).
        ValueError: it has more than ``limit`` bytes; no more than these are read.
    """
    with _opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes, the most that such a file may have")
    return data


def _opened(path: Path) -> BinaryIO:
    """A file to read; to open a pipe would wait for somebody to write into it."""
    if path.exists() and not path.is_file():
        raise OSError(f"it is {'a folder' if path.is_dir() else 'a pipe or a device'}, not a file")
    return path.open("rb")


def parsed(data: bytes) -> Any:
    """The value in JSON text, held to what :func:`to_json` writes.

    Raises:
        ValueError: it is no JSON in UTF-8, a number is not finite or has more than :data:`DIGITS` digits, a text is no
            Unicode, or lists and objects are more than :data:`DEPTH` deep.

    Example:
        >>> parsed(b'{"loss": 2.5}')
        {'loss': 2.5}
        >>> parsed(b'{"loss": 1e999}')
        Traceback (most recent call last):
        ...
        ValueError: the number 1e999 is not finite
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_int=_whole, parse_float=_real, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"its lists and objects are more than {DEPTH} deep") from None
    if data.count(b"[") + data.count(b"{") > DEPTH:
        _require_shallow(value)
    if b"\\ud" in data or b"\\uD" in data:
        json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates is no text
    return value


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"its lists and objects are more than {DEPTH} deep")


def json_value(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no such JSON as :func:`parsed` takes.
    """
    return parsed(read_at_most(path, JSON_BYTES))


def json_object(path: Path, *, advice: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RunFolderError: there is none; the message ends in ``advice``.
    """
    hint = f"; {advice}" if advice else ""
    try:
        value = json_value(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}{hint}") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path} should hold a JSON object, but holds {type(value).__name__}{hint}")
    return value


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, one after the other; a last line that was cut off is left out.

    Raises:
        RunFolderError: another line holds none, or is too long; the message gives its number.
    """
    try:
        with _opened(path) as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                whole = line.endswith(b"\n")
                try:
                    if len(line) > LINE_BYTES:
                        whole = True
                        raise ValueError(f"it has more than {LINE_BYTES:,} bytes")
                    value = parsed(line) if line.strip() else {}
                    if not isinstance(value, dict):
                        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
                except ValueError as error:
                    if not whole:
                        return
                    raise RunFolderError(
                        f"{path} is damaged in line {number}: {error}; take that line out, and what it measured is "
                        "left out"
                    ) from error
                if value:
                    yield value
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error


@contextmanager
def read_from(path: Path, *, advice: str) -> Iterator[None]:
    """A block that reads a file or folder and uses its content: where it is of another form, one clear error says so.

    Raises:
        RunFolderError: something is missing there, or is of another kind; the message ends in ``advice``.
    """
    try:
        yield
    except DeepZeroError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error}; {advice}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunFolderError(
            f"{path} does not hold what it should ({type(error).__name__}: {reason}): it is damaged, or of another "
            f"version of deepzero; {advice}"
        ) from error


def tensor_bytes(path: Path) -> bytes:
    """The content of a safetensors file, whose size is the one that its header announces.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or has another size; no more than its header is read then.
    """
    with _opened(path) as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        size = os.fstat(file.fileno()).st_size
        if len(start) < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise ValueError(f"it has {size:,} bytes and no header of a safetensors file")
        header = file.read(length)
        announced = 8 + length + _announced(parsed(header))
        if announced != size:
            raise ValueError(f"it has {size:,} bytes, but its header says {announced:,}")
        data = start + header + file.read(size - 8 - length)
    if len(data) != size:
        raise ValueError(f"it has changed while it was read, at {len(data):,} of {size:,} bytes")
    return data


def _announced(header: Any) -> int:
    """Bytes of all tensors."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return int(max(ends, default=0))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError("its header is not that of a safetensors file") from error


def tensors_in(data: bytes) -> dict[str, Tensor]:
    """The tensors in the content of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    import safetensors.torch  # noqa: PLC0415 - with PyTorch

    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of many kinds: its own, and those of a type that PyTorch does not have
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_tensors(path: Path, *, advice: str = "") -> dict[str, Tensor]:
    """The tensors in a safetensors file.

    Raises:
        RunFolderError: it cannot be read; the message ends in ``advice``.
    """
    try:
        return tensors_in(tensor_bytes(path))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}{f'; {advice}' if advice else ''}") from error
