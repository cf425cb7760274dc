"""Images as people have them when they want a prediction: files, PIL images, arrays in one layout or another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Real, Shaped
from torch import Tensor

from deepzero.data.image_files import ENDINGS, image_files, open_image, pillow, pixels
from deepzero.errors import DataNotFoundError, InvalidInputError

if TYPE_CHECKING:
    from PIL import Image

BYTES, FRACTIONS, REALS = "bytes", "fractions", "reals"
VALUES = (BYTES, FRACTIONS, REALS)
WHITE = 255
"""White in an image file of 8 bits a channel."""
TOLERANCE = 1e-4
"""Distance that a part of white may lie outside of 0 to 1 by rounding, or because a resized image swings over."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RawImages:
    """Conversion of images into the form of a data set; the fields are those of :class:`deepzero.data.Preprocessing`.

    Attributes:
        shape: channels, height and width in the data set, before tiles are averaged.
    """

    shape: tuple[int, int, int]
    shorter_side: int | None
    values: str
    scale: float

    def read(self, raw: Any) -> Real[Tensor, "b c h w"]:
        """Images in the units of the data set, uint8 or float32.

        Raises:
            InvalidInputError: they are of another kind or shape, or have no single meaning.
            DataNotFoundError: there is no such file.
        """
        if isinstance(raw, (str, os.PathLike)):
            return torch.cat([self._one(path) for path in _files(Path(raw).expanduser())])
        if not isinstance(raw, Sequence):
            return self._one(raw)
        if not raw:
            raise InvalidInputError("a list of images must hold at least one, got an empty one")
        items = [self._one(item) for item in raw]
        for number, item in enumerate(items):
            if len(item) != 1:
                raise InvalidInputError(
                    f"each item of a list must be one image, but item {number} has {len(item)}; "
                    "join arrays with np.concatenate instead"
                )
        return torch.cat(items)

    def _one(self, raw: Any) -> Real[Tensor, "b c h w"]:
        if isinstance(raw, (str, os.PathLike)):
            with open_image(Path(raw).expanduser()) as image:
                return self._of_image(image)
        if _is_pil_image(raw):
            return self._of_image(raw)
        if isinstance(raw, Tensor):
            raw = raw.detach().cpu().numpy()
        if isinstance(raw, np.ndarray):
            return self._of_array(raw)
        raise InvalidInputError(
            "images must be given as paths of image files, PIL images, or an array or tensor of pixels, "
            f"got {type(raw).__name__}"
        )

    def _of_image(self, image: Image.Image) -> Real[Tensor, "1 c h w"]:
        if self.values == REALS or (self.values == BYTES and self.scale != WHITE):
            there = f"integers from 0 to {self.scale:g}" if self.values == BYTES else "numbers of another unit"
            raise InvalidInputError(
                f"image files hold integers from 0 (black) to {WHITE} (white), but the images that the network was "
                f"trained on are {there}; give an array in the units of those"
            )
        return _as_set_holds(pixels(image, shape=self.shape, shorter_side=self.shorter_side)[None], self.values)

    def _of_array(self, raw: Array) -> Real[Tensor, "b c h w"]:
        size = self.shape[1:]
        if raw.size == 0:
            raise InvalidInputError(f"an array of images must hold at least one pixel, got shape {list(raw.shape)}")
        if raw.dtype.kind not in "iuf":
            raise InvalidInputError(f"pixels must be integers or floating-point numbers, got {raw.dtype}")
        if self.shorter_side is None or np.issubdtype(raw.dtype, np.floating):
            return self._in_units(channels_first(raw, self.shape[0], size))
        images = channels_first(raw, self.shape[0], None)
        if self.shorter_side == min(size) and images.shape[2:] == size:
            return self._in_units(images)
        if images.shape[2:] == size:
            raise InvalidInputError(
                f"an array of {size[0]}x{size[1]} pixels could be an image that is to be resized (the shorter side to "
                f"{self.shorter_side} pixels, then the middle) or one that was; for the first, give PIL images "
                "(PIL.Image.fromarray), for the second, use preprocessing.normalize"
            )
        return torch.cat([self._of_image(_image(one)) for one in self._in_units(images)])

    def _in_units(self, images: Shaped[Tensor, "b c h w"]) -> Real[Tensor, "b c h w"]:
        if images.is_floating_point():
            if not images.isfinite().all():
                raise InvalidInputError("pixels must be finite, got NaN or infinity")
            return self._of_floats(images)
        if self.values == REALS and images.dtype != torch.uint8:
            return images.to(torch.float32)
        if self.values == REALS:
            raise InvalidInputError(
                "the network was trained on numbers that are no pixel values from 0 to 255, got uint8; bring the "
                "images to the units of the training images first"
            )
        white = self.scale if self.values == BYTES else WHITE
        low, high = int(images.min()), int(images.max())
        if low < 0 or high > white:
            raise InvalidInputError(
                f"integer pixels must be from 0 (black) to {white:g} (white) as in the training images, "
                f"got {low} to {high}"
            )
        return _as_set_holds(images.to(torch.uint8), self.values)

    def _of_floats(self, images: Real[Tensor, "b c h w"]) -> Real[Tensor, "b c h w"]:
        """Floating-point pixels: parts of white, unless the set itself has another unit."""
        if self.values == REALS:
            return images.to(torch.float32)
        white = 1.0 if self.values == BYTES else self.scale
        low, high = float(images.min()), float(images.max())
        if low < -TOLERANCE * white or high > white * (1 + TOLERANCE):
            as_integers = f"; pixels from 0 to {self.scale:g} must be integers: x.astype(np.uint8)"
            raise InvalidInputError(
                f"floating-point pixels must be from 0 (black) to {white:g} (white), not normalized any further, "
                f"got {low:g} to {high:g}{as_integers if self.values == BYTES and low >= 0 else ''}"
            )
        if self.values == FRACTIONS:
            return images.to(torch.float32)
        if high == 1 and bool(((images == 0) | (images == 1)).all()):
            raise InvalidInputError(
                f"floating-point pixels of only 0.0 and 1.0 could mean black and white, or the two darkest of "
                f"{self.scale:g} grays; say which by integers: (x * {self.scale:g}).astype(np.uint8), or "
                "x.astype(np.uint8)"
            )
        scaled = (images * self.scale).to(torch.float32)
        whole = scaled.round()
        return whole.to(torch.uint8) if torch.equal(whole, scaled) else scaled


def channels_first(raw: Array, channels: int, size: tuple[int, int] | None) -> Shaped[Tensor, "b {channels} h w"]:
    """An array of one image or many as ``[b, channels, h, w]``.

    Args:
        raw: ``[h, w]`` and ``[b, h, w]`` for one channel, ``[c, h, w]``, ``[h, w, c]``, ``[b, c, h, w]`` or
            ``[b, h, w, c]``.
        channels: their number.
        size: the height and width that there must be; None for any.

    Raises:
        InvalidInputError: the shape fits none of these, or more than one with different results.

    >>> channels_first(np.zeros((5, 4, 3)), 3, (5, 4)).shape
    torch.Size([1, 3, 5, 4])
    """
    readings = [array for array in _readings(raw) if array.shape[1] == channels and size in (None, array.shape[2:])]
    if size is None and channels == 1 and raw.ndim == 3 and len(readings) > 1:
        readings = [array for array in readings if len(array) == 1]  # one image with its channel, not a pile of lines
    if not readings:
        pixels_of = "h, w" if size is None else f"{size[0]}, {size[1]}"
        raise InvalidInputError(
            f"images must have {'1 channel' if channels == 1 else f'{channels} channels'} here: an array of shape "
            f"[{channels}, {pixels_of}] or [{pixels_of}, {channels}], or [b, ...] for b of them"
            f"{f', or [{pixels_of}]' if channels == 1 else ''}; got {list(raw.shape)}"
        )
    if any(one.shape != readings[0].shape or not np.array_equal(one, readings[0]) for one in readings[1:]):
        raise InvalidInputError(
            f"an array of shape {list(raw.shape)} can be read with the channels first or last; "
            f"give PIL images or files instead"
        )
    return torch.from_numpy(np.array(readings[0], order="C"))  # a copy: an image of PIL cannot be written


def _readings(raw: Array) -> list[Array]:
    """All that an array can mean, as ``[b, c, h, w]``."""
    if raw.ndim == 2:
        return [raw[None, None]]
    if raw.ndim == 3:
        return [raw[None], raw.transpose(2, 0, 1)[None], raw[:, None]]
    if raw.ndim == 4:
        return [raw, raw.transpose(0, 3, 1, 2)]
    return []


def _as_set_holds(images: Real[Tensor, "b c h w"], values: str) -> Real[Tensor, "b c h w"]:
    """uint8 as it is, or as parts of white."""
    return images if values == BYTES else (images.to(torch.float64) / WHITE).to(torch.float32)


def _is_pil_image(raw: Any) -> bool:
    """True for an image of Pillow's, of which there is none where Pillow was never imported."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(raw, module.Image)


def _image(channels: Shaped[Tensor, "c h w"]) -> Image.Image:
    array = channels.numpy()
    image: Image.Image = pillow().fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    return image


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = image_files(path)
    if not found:
        raise DataNotFoundError(f"{path} holds no image; files that end in {', '.join(ENDINGS)} count")
    return found
