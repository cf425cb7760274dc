"""The files of a data set: folders to look in, the error if it is in none of them, and the memory that they take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deepzero.errors import DataNotFoundError, InvalidInputError

ENVIRONMENT_VARIABLE = "DEEPZERO_DATA"
DEFAULT_ROOT = "data"


def candidate_folders(name: str, data_dir: str | os.PathLike[str] | None, *, system: Sequence[Path] = ()) -> list[Path]:
    """The folders to look in for the set called ``name``, best first.

    A given ``data_dir`` and its sub-folder ``name`` are the only ones. Otherwise the sub-folder ``name`` of the folder
    in the environment variable ``DEEPZERO_DATA``, or of ``./data`` if it is not set; then the ``system`` folders.
    """
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        return [folder, folder / name]
    root = Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ROOT).expanduser()
    return [root / name, *system]


def not_found(title: str, folders: Sequence[Path], *, where_to_get: str, what_to_put: str) -> DataNotFoundError:
    """The error that says where the set was looked for, where to get it, and where to put it."""
    looked = ", ".join(str(folder.absolute()) for folder in folders)
    return DataNotFoundError(
        f"{title} was not found; looked in: {looked}. {where_to_get} Then put {what_to_put} into "
        f"{folders[0].absolute()}, or name their folder by data_dir=... or, one level up, by the environment variable "
        f"{ENVIRONMENT_VARIABLE}."
    )


def memory_here() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return float("inf")


def require_memory(path: Path, announced: int) -> None:
    """Raise unless the content of a file, which it announces before it is read, fits into memory twice.

    Raises:
        InvalidInputError: it does not.
    """
    if 2 * announced > memory_here():
        raise InvalidInputError(
            f"{path} says that it holds {announced / 2**30:,.1f} GiB, which must fit into memory "
            f"({memory_here() / 2**30:.1f} GiB here) twice; it is damaged, or too large for this machine"
        )


def require_file(path: Path) -> None:
    """Raise unless there is a file at a path: no folder, pipe or device, which may have no end.

    Raises:
        DataNotFoundError: there is none.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "missing"
        raise DataNotFoundError(f"{path} is {what}; put the file there")
