"""Detection of the kind of data set at a path; if none can be read, the reason and the remedy."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from deepzero.data.cifar10 import BINARY_FOLDER, BINARY_TEST, PARQUET_FOLDERS, PICKLE_FOLDER
from deepzero.data.columns import CSV_ENDINGS, PARQUET_ENDINGS, PARQUET_MAGIC
from deepzero.data.idx import image_file_of
from deepzero.data.image_files import ENDINGS, image_files
from deepzero.data.image_folders import class_folders
from deepzero.data.own_data import TEST, TRAIN
from deepzero.errors import DataNotFoundError, InvalidInputError
from deepzero.text import did_you_mean

IMAGE_FOLDER, NPZ, CSV, PARQUET, IDX, CIFAR10 = "image-folder", "npz", "csv", "parquet", "idx", "cifar10"
KINDS = (IMAGE_FOLDER, NPZ, CSV, PARQUET, IDX, CIFAR10)
"""Forms of data that are told apart by what a path holds."""
UNDERSTOOD = (
    "a folder of images with a folder for each class, an .npz file, a CSV or Parquet table, a folder of IDX files, or "
    "CIFAR-10's folder"
)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
WHAT_TO_DO = {
    ".npy": "it is a single array; put inputs and labels into one file: np.savez('data.npz', x=x, y=y)",
    ".xlsx": "it is a spreadsheet; save it as CSV",
    ".xls": "it is a spreadsheet; save it as CSV",
    ".ods": "it is a spreadsheet; save it as CSV",
    ".json": "JSON is not read; write it as a table: pd.read_json(path).to_csv('data.csv', index=False)",
    ".jsonl": "JSON is not read; write it as a table: pd.read_json(path, lines=True).to_csv('data.csv', index=False)",
    ".h5": "HDF5 is not read; write inputs and labels as np.savez('data.npz', x=x, y=y)",
    ".hdf5": "HDF5 is not read; write inputs and labels as np.savez('data.npz', x=x, y=y)",
    ".mat": "MATLAB's files are not read; write inputs and labels as np.savez('data.npz', x=x, y=y)",
    ".feather": "Feather is not read; write it as Parquet: pd.read_feather(path).to_parquet('data.parquet')",
    ".arff": "ARFF is not read; write it as CSV with a header",
    **dict.fromkeys(ARCHIVES, "it is an archive; unpack it, and name the folder or file that comes out"),
    **dict.fromkeys(
        PICKLED,
        "it is pickled, and a pickle can run any code, so it is never read; write np.savez('data.npz', x=x, y=y)",
    ),
    **dict.fromkeys(ENDINGS, "it is a single image; name a folder that holds a folder of images for each class"),
}
"""Ending -> why a file with it is not read, and what to do."""


def detect(path: str | os.PathLike[str]) -> str:
    """The kind of the data set at a path, one of ``image-folder``, ``npz``, ``csv``, ``parquet``, ``idx``, ``cifar10``.

    Files and folders are told apart by what they hold and by their endings; nothing is decoded yet.

    Raises:
        DataNotFoundError: there is nothing; the message says what there is with a similar name.
        InvalidInputError: it is nothing that can be read; the message says why, and what to do.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise _missing(place)
    return _kind_of_folder(place) if place.is_dir() else _kind_of_file(place)


def _missing(path: Path) -> DataNotFoundError:
    from deepzero.data import dataset_registry as registry  # noqa: PLC0415 - which knows this module

    known, first = path.absolute(), path.absolute()
    while not known.exists():
        known, first = known.parent, known
    names = [entry.name for entry in known.iterdir()] if known.is_dir() and os.access(known, os.R_OK) else []
    guess = did_you_mean(first.name, names, shown=known.joinpath) or did_you_mean(
        str(path), registry.names(), shown="the set {}".format
    )
    if set("*?[") & set(first.name):
        advice = f"a pattern in quotes is not expanded; name the folder: {known}"
    else:
        named = ", ".join(registry.names())
        advice = f"{known} has no {first.name!r}; name a file or folder, or one of the sets {named}"
    return DataNotFoundError(f"there is no file or folder {path}{guess}; {advice}")


def _kind_of_file(path: Path) -> str:
    ending = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise InvalidInputError(f"{path} is empty")
    if start.startswith(b"PK") and ending in (".npz", "") and _holds_arrays(path):
        return NPZ
    if ending == ".npz":
        raise InvalidInputError(f"{path} is not an .npz file, whatever its name says; write it with np.savez")
    if start == PARQUET_MAGIC or ending in PARQUET_ENDINGS:
        return PARQUET
    if ending in WHAT_TO_DO and not ("idx" in path.name and ending == ".gz"):
        raise InvalidInputError(f"{path} is no data set that can be read: {WHAT_TO_DO[ending]}")
    if start.startswith(b"PK"):
        raise InvalidInputError(f"{path} is no data set that can be read: {WHAT_TO_DO['.zip']}")
    if start[:3] == b"\0\0\x08" or "idx" in path.name:
        raise InvalidInputError(f"{path} is one IDX file of a set; name the folder that holds images and labels")
    if start.lstrip()[:1] in (b"{", b"["):
        raise InvalidInputError(f"{path} is no data set that can be read: {WHAT_TO_DO['.json']}")
    if ending in CSV_ENDINGS:
        return CSV
    raise InvalidInputError(
        f"{path} has the ending {ending or '(none)'}, which says nothing here; expected {UNDERSTOOD}"
    )


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except Exception as error:  # of zipfile, of many kinds
        raise InvalidInputError(f"{path} is truncated or corrupt ({error}); write or fetch it again") from error


def _kind_of_folder(path: Path) -> str:
    if (path / "run.json").is_file():
        raise InvalidInputError(f"{path} is the folder of a run; name data, such as those that it was trained on")
    kinds: dict[str, Callable[[Path], bool]] = {IDX: _is_idx, CIFAR10: _is_cifar10, IMAGE_FOLDER: _is_image_folder}
    kind = next((kind for kind, fits in kinds.items() if fits(path)), None)
    if kind is None:
        raise InvalidInputError(f"{path} is no data set that can be read: {_why_not(path)}")
    return kind


def _is_idx(path: Path) -> bool:
    return any(image_file_of(path, part) for part in (TRAIN, TEST))


def _is_cifar10(path: Path) -> bool:
    parquet = any(any((path / name).glob(f"{part}-*.parquet")) for name in PARQUET_FOLDERS for part in (TRAIN, TEST))
    binary = any((path / name / BINARY_TEST[0]).is_file() for name in (BINARY_FOLDER, "."))
    pickled = (path / PICKLE_FOLDER).is_dir() or (
        path / "batches.meta"
    ).is_file()  # refused when it is read, with advice
    return parquet or binary or pickled


def _is_image_folder(path: Path) -> bool:
    return any(map(image_files, class_folders(path / TRAIN if (path / TRAIN).is_dir() else path)))


def _why_not(path: Path) -> str:
    """The reason that a folder cannot be read."""
    entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if not entries:
        return "it is an empty folder; put a folder of images for each class into it"
    if images := image_files(path):
        return (
            f"its images, such as {images[0].name}, lie in the folder itself; put those of each class into a folder of "
            f"its own, such as {path / 'cats' / images[0].name}"
        )
    endings = {Path(name).suffix.lower(): name for name in reversed(entries)}
    if tables := endings.keys() & {".npz", *CSV_ENDINGS, *PARQUET_ENDINGS}:
        return f"name a file in it: {path / endings[min(tables)]}"
    if archives := endings.keys() & set(ARCHIVES):
        return f"it holds the archive {endings[min(archives)]}; unpack it first"
    return _too_deep(path) or f"it holds {', '.join(entries[:5])}; expected {UNDERSTOOD}"


def _too_deep(path: Path) -> str | None:
    """The remedy if there are images further down."""
    children = class_folders(path)
    deep = next((folder for child in children for folder in _with_images(child)), None)
    if deep is None:
        return None
    parts = [child.name for child in children if child.name.lower().startswith(("train", "test", "val"))]
    if parts and deep.parent.parent == path:
        return f"it holds {', '.join(parts)} with folders of images; rename these to train and test (or train and val)"
    return (
        f"its images lie too deep, as in {deep}; images belong right into the folder of their class, and {deep.parent} "
        "looks like the one to name"
    )


def _with_images(folder: Path) -> list[Path]:
    """Folders below that hold images, down to three levels."""
    found, level = [], [folder]
    for _ in range(3):
        level = [child for parent in level for child in class_folders(parent)]
        found += [child for child in level if image_files(child)]
    return found
