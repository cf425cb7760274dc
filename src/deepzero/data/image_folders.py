"""Images in folders, a folder for each class: ImageNet's layout, and that of most collections of one's own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from deepzero.data.data_files import candidate_folders, memory_here, not_found
from deepzero.data.dataset import Dataset
from deepzero.data.image_files import ENDINGS, image_files, is_gray, open_image, pixels
from deepzero.data.images import channel_statistics
from deepzero.data.own_data import TEST, TRAIN, VALIDATION, Contents, Samples
from deepzero.errors import InvalidInputError

SIZE = 224
"""Height and width that the named set ``image-folder`` is brought to."""
MARGIN = 256 / 224
"""The shorter side is brought to this multiple of that size before the middle is cut out, as is usual for ImageNet."""
MULTIPLE, LARGEST = 16, 64
"""Images of several sizes become squares of a multiple of the first, in pixels, and of the second at most."""
PARTS = {TRAIN: (TRAIN,), VALIDATION: ("val", "valid", "validation"), TEST: (TEST,)}
"""Parts of a set, and what their folders may be called."""

Files = dict[str, list[tuple[Path, int]]]
Result = TypeVar("Result")


def load_image_folder(data_dir: str | os.PathLike[str] | None = None, *, size: int = SIZE) -> tuple[Dataset, Dataset]:
    """Training and test set from ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or ``val``), in memory.

    Classes are numbered in alphabetical order of their folders. The shorter side of an image is brought to 8/7 of
    ``size``, and the middle is cut out; gray images get three equal channels. The training images' own statistics
    normalize both sets. 10,000 images of 224x224 pixels take 1.5 GB. For images of another size, or without a test
    set, see :func:`deepzero.data.load` and its ``path``.

    Args:
        data_dir: the folder that holds ``train`` and ``test``.
        size: height and width of the images.

    Raises:
        DataNotFoundError: there is no such folder.
        InvalidInputError: the two sets have other classes, a class has no image, or a file is no image.
    """
    train, test = find_image_folder(data_dir)
    classes, files = _listed({TRAIN: train, TEST: test})
    shorter_side = round(MARGIN * size)
    images = {part: _read(found, (3, size, size), shorter_side) for part, found in files.items()}
    mean, std = channel_statistics(images[TRAIN], scale=255.0)

    def dataset(part: str) -> Dataset:
        return Dataset(
            inputs=images[part],
            labels=_labels(files[part]),
            num_classes=len(classes),
            class_names=tuple(classes),
            mean=mean,
            std=std,
            name="image-folder",
            shorter_side=shorter_side,
        )

    return dataset(TRAIN), dataset(TEST)


def find_image_folder(data_dir: str | os.PathLike[str] | None = None) -> tuple[Path, Path]:
    """The folders of the training and of the test images.

    Raises:
        DataNotFoundError: there are none.
    """
    folders = candidate_folders("image-folder", data_dir)
    root = next((folder for folder in folders if (folder / TRAIN).is_dir()), None)
    tests = () if root is None else (root / name for name in ("test", "val"))
    test = next((folder for folder in tests if folder.is_dir()), None)
    if root is None or test is None:
        raise not_found(
            "A folder of images",
            folders,
            where_to_get="It is one that you made.",
            what_to_put="the folders train/CLASS and test/CLASS (or val/CLASS) with image files",
        )
    return root / TRAIN, test


def read_image_folder(path: Path, image_size: int | None = None) -> Contents:
    """The images below ``path``: ``CLASS/*``, or ``train/CLASS/*`` beside ``test/CLASS/*``, ``val/CLASS/*`` or both.

    With ``train`` and ``val`` alone, ``val`` is the test set. Images are gray if all files are. Without ``image_size``
    they keep their size if it is the same for all; else they become squares: the median of their shorter sides, down to
    a multiple of 16, at least 16 and at most 64 pixels. A square comes about by bringing the shorter side to its size
    (bicubic) and cutting out the middle.

    Raises:
        InvalidInputError: a class is empty or missing in a part, there is but one class, a file is no image or has more
            than 8 bits a channel, or all images together would not fit into memory.
    """
    folders = {
        part: next((path / name for name in names if (path / name).is_dir()), None) for part, names in PARTS.items()
    }
    if folders[TRAIN] is None:
        parts = {TRAIN: path}
    else:
        parts = {part: folder for part, folder in folders.items() if folder is not None}
        if TEST not in parts and VALIDATION in parts:
            parts[TEST] = parts.pop(VALIDATION)
    classes, files = _listed(parts)
    if len(classes) < 2:
        raise InvalidInputError(
            f"{parts[TRAIN]} holds one class only, {classes[0]!r}; put every class into a folder of its own"
        )
    shape, shorter_side, note = _form([file for found in files.values() for file, _ in found], image_size)
    _require_memory(shape, sum(map(len, files.values())))
    return Contents(
        parts={
            part: Samples(inputs=_read(found, shape, shorter_side), labels=_labels(found).numpy())
            for part, found in files.items()
        },
        labels=f"the folders in {parts[TRAIN]}",
        class_names=tuple(classes),
        fields={"shorter_side": shorter_side},
        notes=(note,) if note else (),
    )


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in alphabetical order, but for hidden ones and those that systems leave."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _listed(parts: Mapping[str, Path]) -> tuple[list[str], Files]:
    """Classes, and the files of each part with their labels."""
    classes = [folder.name for folder in class_folders(parts[TRAIN])]
    files: Files = {}
    for part, folder in parts.items():
        names = [entry.name for entry in class_folders(folder)]
        if names != classes:
            if not names and image_files(folder):
                raise InvalidInputError(
                    f"the images in {folder} have no class: there is no folder for each; take it away, and a part of "
                    "the training images is held out instead"
                )
            odd = ", ".join(sorted(set(classes) ^ set(names)))
            raise InvalidInputError(
                f"{parts[TRAIN]} and {folder} must hold the same classes; only one of them has: {odd}"
            )
        files[part] = [(file, label) for label, name in enumerate(classes) for file in _images_of(folder / name)]
    return classes, files


def _images_of(folder: Path) -> list[Path]:
    found = image_files(folder)
    if not found:
        deeper = [entry.name for entry in class_folders(folder)]
        hint = (
            f"; the folders in it ({', '.join(deeper[:3])}) are not looked into: images belong right into the folder "
            "of their class"
            if deeper
            else "; put some in, or take the folder away"
        )
        raise InvalidInputError(f"{folder} holds no image; files that end in {', '.join(ENDINGS)} count{hint}")
    return found


def _form(files: list[Path], image_size: int | None) -> tuple[tuple[int, int, int], int | None, str | None]:
    """The shape that images are brought to, the shorter side before the cut, and what to say about it."""
    headers = _each(_header, files)
    channels = 1 if all(gray for gray, _ in headers) else 3
    if image_size is not None:
        return (channels, image_size, image_size), image_size, None
    sizes = Counter(size for _, size in headers)
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        return (channels, height, width), None, None
    median = int(np.median([min(size) for _, size in headers]))
    size = min(LARGEST, max(MULTIPLE, median // MULTIPLE * MULTIPLE))
    note = (
        f"the images have {len(sizes)} different sizes and a median shorter side of {median} pixels; they become "
        f"squares of {size}x{size} (shorter side to {size}, the middle cut out); choose another size with "
        "image_size=... (--image-size N)"
    )
    return (channels, size, size), size, note


def _header(path: Path) -> tuple[bool, tuple[int, int]]:
    """True if an image is gray, and its width and height, without decoding it."""
    with open_image(path) as image:
        return is_gray(image), image.size


def _require_memory(shape: tuple[int, int, int], count: int) -> None:
    needed = count * shape[0] * shape[1] * shape[2]
    there = memory_here()
    if 2 * needed > there:
        raise InvalidInputError(
            f"{count} images of {shape[1]}x{shape[2]} pixels take {needed / 2**30:.1f} GiB, which must fit into memory "
            f"({there / 2**30:.1f} GiB here) twice; choose a smaller size, such as image_size={LARGEST}"
        )


def _read(
    files: list[tuple[Path, int]], shape: tuple[int, int, int], shorter_side: int | None
) -> UInt8[Tensor, "n c h w"]:
    read = partial(_pixels, shape=shape, shorter_side=shorter_side)
    return torch.stack(_each(read, [path for path, _ in files]))


def _pixels(path: Path, *, shape: tuple[int, int, int], shorter_side: int | None) -> UInt8[Tensor, "c h w"]:
    with open_image(path) as image:
        return pixels(image, shape=shape, shorter_side=shorter_side)


def _each(work: Callable[[Path], Result], files: list[Path]) -> list[Result]:
    with ThreadPoolExecutor() as pool:  # decoding does not hold the interpreter's lock
        return list(pool.map(work, files))


def _labels(files: list[tuple[Path, int]]) -> Int64[Tensor, " n"]:
    return torch.tensor([label for _, label in files])
