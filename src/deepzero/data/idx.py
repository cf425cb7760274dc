"""The IDX file format of MNIST and its relatives.

Bytes 0 and 1 are zero, byte 2 is the type (8: unsigned byte), byte 3 the number of dimensions; then the dimensions as
big-endian 32-bit integers, then the values in row-major order. Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from deepzero.data.data_files import require_file, require_memory
from deepzero.data.own_data import TEST, TRAIN, Contents, Samples
from deepzero.errors import DataNotFoundError, InvalidInputError

UNSIGNED_BYTE = 8
PARTS = {TRAIN: ("train",), TEST: ("t10k", "test")}
GZIP_MAGIC = b"\x1f\x8b"
DIMENSIONS = 8
"""Dimensions, at most; images and labels have 3 and 1."""
PART = 1 << 20
"""Bytes that are read at a time."""


def read_idx(path: Path) -> UInt8[Tensor, " ..."]:
    """Read a file of unsigned bytes, plain or gzip-compressed, as a tensor of the shape in its header.

    Raises:
        InvalidInputError: the file is not IDX, holds another type, or is shorter or longer than its header says.
    """
    require_file(path)
    try:
        with path.open("rb") as plain, _unpacked(plain) as file:
            shape, values = _announced(path, file)
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidInputError(f"{path} is truncated or corrupt: {error}; fetch it again") from error
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape))


def read_dimensions(path: Path, *, dimensions: int) -> UInt8[Tensor, " ..."]:
    """The array that :func:`read_idx` gives, if it has ``dimensions``.

    Raises:
        InvalidInputError: it has others.
    """
    values = read_idx(path)
    if values.dim() != dimensions:
        raise InvalidInputError(f"{path} should have {dimensions} dimensions, got {list(values.shape)}")
    return values


def image_file_of(folder: Path, part: str) -> Path | None:
    """The IDX file of images of a part of a set, ``train`` or ``test``, by its name as in MNIST and its relatives."""
    words = PARTS[part]
    entries = sorted(entry for entry in folder.iterdir() if "images" in entry.name and "idx3" in entry.name)
    return next((entry for entry in entries if any(word in entry.name for word in words)), None)


def read_idx_folder(folder: Path) -> Contents:
    """Gray images and labels of a folder with files named as MNIST's are.

    ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and the same with ``t10k`` or ``test`` if there is a
    test set; with ``.gz`` or without; a dot may stand for the second hyphen, and other words before ``train``.

    Raises:
        DataNotFoundError: labels are missing, or training images.
        InvalidInputError: a file is damaged, or two do not fit together.
    """
    files = {part: image_file_of(folder, part) for part in (TRAIN, TEST)}
    if files[TRAIN] is None:
        raise DataNotFoundError(f"{folder} holds no file train-images-idx3-ubyte[.gz]; put the training images there")
    samples = {}
    for part, images in files.items():
        if images is not None:
            labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
            if not labels.is_file():
                raise DataNotFoundError(f"{labels} is missing: the labels of {images.name}")
            samples[part] = Samples(
                inputs=read_dimensions(images, dimensions=3)[:, None],
                labels=read_dimensions(labels, dimensions=1).numpy(),
            )
    return Contents(parts=samples, labels=f"the labels in {folder}")


def _unpacked(file: BinaryIO) -> BinaryIO:
    """A file as it is, or what is compressed in it, from its start."""
    compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if compressed else file  # type: ignore[return-value]


def _announced(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bytearray]:
    """The shape in the header, and as many bytes as it announces; no more are read than show that there are others."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != UNSIGNED_BYTE:
        raise InvalidInputError(
            f"{path} is not an IDX file of unsigned bytes: expected it to start with 00 00 08, got "
            f"{start[:3].hex(' ') or 'nothing'}; fetch it again"
        )
    dimensions = start[3]
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise InvalidInputError(f"{path} ends within its header, after {4 + len(sizes)} bytes; fetch it again")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if not 1 <= dimensions <= DIMENSIONS or 0 in shape:
        raise InvalidInputError(
            f"{path} is corrupt: its header says {list(shape[: DIMENSIONS + 1])}, and an array of 1 to {DIMENSIONS} "
            "dimensions, none of them 0, is expected; fetch it again"
        )
    expected = math.prod(shape)
    require_memory(path, expected)
    values = bytearray()
    while len(values) <= expected and (part := file.read(min(PART, expected + 1 - len(values)))):
        values += part
    if len(values) != expected:
        found = f"{len(values)} follow" if len(values) < expected else "more follow"
        raise InvalidInputError(
            f"{path} is truncated or corrupt: its header says {list(shape)}, which is {expected} bytes of values, "
            f"but {found}; fetch it again"
        )
    return shape, values
