"""The folders of the files of a data set, and the error if it is in none of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deepzero.errors import DataNotFoundError

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
