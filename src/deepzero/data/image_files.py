"""Image files: those in a folder, and their pixels at one size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from deepzero.errors import DataNotFoundError, InvalidInputError
from deepzero.extras import required_for
from deepzero.text import one_line

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SLENDER = 1000
"""Ratio of an image's sides from which it is refused: brought to size, the longer side would not fit into memory."""
GRAY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")
"""PIL's modes of more than 8 bits a channel, with their relatives ``I;16``, ...: how to bring them to 8 is a choice."""


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files right in a folder, in alphabetical order, told by their endings; hidden files do not count."""
    entries = sorted(Path(folder).iterdir())
    return [entry for entry in entries if is_image(entry) and not entry.name.startswith(".")]


def is_image(path: Path) -> bool:
    """True if a file is an image, by its ending."""
    return path.suffix.lower() in ENDINGS


def pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        MissingPackageError: Pillow is not installed.
    """
    with required_for("an image file"):
        from PIL import Image  # noqa: PLC0415 - optional
    return Image


def open_image(path: Path) -> Image.Image:
    """Open an image file; its pixels are decoded later.

    Raises:
        DataNotFoundError: there is no such file.
        InvalidInputError: it is no image.
    """
    if not path.is_file():
        raise DataNotFoundError(f"there is no file {path}")
    reader = pillow()
    try:
        image: Image.Image = reader.open(path)
    except Exception as error:  # Pillow's, of many kinds
        raise _unreadable(str(path), error) from error
    return image


def name_of(image: Image.Image) -> str:
    """The name of an image in messages: its file, or that it is a PIL image."""
    return str(getattr(image, "filename", "") or f"a PIL image of {image.width}x{image.height} pixels")


def is_gray(image: Image.Image) -> bool:
    """True if it has no color.

    Raises:
        InvalidInputError: its channels have more than 8 bits.
    """
    if image.mode.startswith(DEEP_MODES):
        raise InvalidInputError(
            f"{name_of(image)} has more than 8 bits a channel (PIL calls it mode {image.mode}); bring it to 8 bits "
            "first, or put the images into an .npz file as float32 arrays"
        )
    return image.mode in GRAY_MODES


def pixels(
    image: Image.Image, *, shape: tuple[int, int, int], shorter_side: int | None
) -> UInt8[Tensor, "{shape[0]} {shape[1]} {shape[2]}"]:
    """The pixels of an image as ``shape``: 1 channel for gray or 3 for color, height, width.

    Args:
        image: of any mode of 8 bits or less; transparency is left out.
        shape: of the result.
        shorter_side: pixels to bring the shorter side to before the middle is cut out; with None the image must have
            the size of the result.

    Raises:
        InvalidInputError: it has more than 8 bits a channel, is damaged, or has another size.
    """
    channels, height, width = shape
    is_gray(image)
    try:
        converted = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's, of many kinds
        raise _unreadable(name_of(image), error) from error
    if shorter_side is not None:
        converted = _middle(converted, height, width, shorter_side)
    elif converted.size != (width, height):
        raise InvalidInputError(
            f"{name_of(image)} has {image.height}x{image.width} pixels (height x width), but all images of the set "
            f"have {height}x{width}; bring it to that size first, or train at a size of your choice (image_size=...)"
        )
    array = np.array(converted)
    return torch.from_numpy(array[None] if channels == 1 else array.transpose(2, 0, 1).copy())


def _middle(image: Image.Image, height: int, width: int, shorter_side: int) -> Image.Image:
    if max(image.size) > SLENDER * min(image.size):
        raise InvalidInputError(
            f"{name_of(image)} has {image.height}x{image.width} pixels (height x width), too slender to be brought to "
            f"{height}x{width}; take it away"
        )
    scale = shorter_side / min(image.size)
    wide, high = (max(shorter_side, round(scale * side)) for side in image.size)
    resized = image.resize((wide, high), pillow().Resampling.BICUBIC)
    left, top = (wide - width) // 2, (high - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _unreadable(name: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(f"{name} cannot be read as an image ({one_line(error)}); mend it or take it away")
