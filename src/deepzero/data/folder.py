"""Images in folders, a folder for each class: ImageNet's layout, and that of most collections of one's own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deepzero.data.dataset import Dataset
from deepzero.data.files import candidate_folders, not_found
from deepzero.data.images import channel_statistics
from deepzero.errors import InvalidInputError

SIZE = 224
"""Height and width that images are brought to."""
MARGIN = 256 / 224
"""The shorter side is brought to so many times the size before the middle is cut out, as is usual for ImageNet."""
ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
TRAIN, TEST = "train", ("test", "val")


def load_image_folder(data_dir: str | os.PathLike[str] | None = None, *, size: int = SIZE) -> tuple[Dataset, Dataset]:
    """Training and test set from ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or ``val``), in memory.

    Classes are numbered in alphabetical order of their folders. The shorter side of an image is brought to 8/7 of
    ``size``, and the middle is cut out; gray images get three equal channels. The training images' own statistics
    normalize both sets. 10,000 images of 224x224 pixels take 1.5 GB.

    Args:
        data_dir: the folder that holds ``train`` and ``test``.
        size: height and width of the images.

    Raises:
        DataNotFoundError: there is no such folder.
        InvalidInputError: the two sets have other classes, a class has no image, or a file is no image.
    """
    folders = candidate_folders("image-folder", data_dir)
    root = next((folder for folder in folders if (folder / TRAIN).is_dir()), None)
    test = None if root is None else next((root / name for name in TEST if (root / name).is_dir()), None)
    if root is None or test is None:
        raise not_found(
            "A folder of images",
            folders,
            where_to_get="It is one that you made.",
            what_to_put="the folders train/CLASS and test/CLASS (or val/CLASS) with image files",
        )
    classes = _classes(root / TRAIN)
    if _classes(test) != classes:
        odd = ", ".join(sorted(set(classes) ^ set(_classes(test))))
        raise InvalidInputError(f"{root / TRAIN} and {test} must hold the same classes; only one of them has: {odd}")
    train_images, train_labels = _read(root / TRAIN, classes, size)
    mean, std = channel_statistics(train_images, scale=255.0)
    test_images, test_labels = _read(test, classes, size)

    def dataset(images: Tensor, labels: Tensor) -> Dataset:
        return Dataset(images=images, labels=labels, num_classes=len(classes), mean=mean, std=std, name="image-folder")

    return dataset(train_images, train_labels), dataset(test_images, test_labels)


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read(folder: Path, classes: list[str], size: int) -> tuple[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in ENDINGS)
        if not found:
            raise InvalidInputError(f"{folder / name} holds no image; files that end in {', '.join(ENDINGS)} count")
        paths += found
        labels += [label] * len(found)
    with ThreadPoolExecutor() as pool:  # decoding does not hold the interpreter's lock
        pixels = np.stack(list(pool.map(lambda path: _pixels(path, size), paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def _pixels(path: Path, size: int) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path} cannot be read as an image ({error}); mend it or take it away") from error
    shorter = round(MARGIN * size)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(scale * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))
