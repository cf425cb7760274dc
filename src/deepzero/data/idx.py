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

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from deepzero.data.own_data import TEST, TRAIN, Contents, Samples
from deepzero.errors import DataNotFoundError, InvalidInputError

UNSIGNED_BYTE = 8
PARTS = {TRAIN: ("train",), TEST: ("t10k", "test")}
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> UInt8[Tensor, " ..."]:
    """Read a file of unsigned bytes, plain or gzip-compressed, as a tensor of the shape in its header.

    Raises:
        InvalidInputError: the file is not IDX, holds another type, or is shorter or longer than its header says.
    """
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise InvalidInputError(
            f"{path} is not an IDX file of unsigned bytes: expected it to start with 00 00 08, got "
            f"{content[:3].hex(' ') or 'nothing'}; fetch it again"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InvalidInputError(f"{path} ends within its header, after {len(content)} bytes; fetch it again")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    expected, found = math.prod(shape), len(content) - start
    if expected != found:
        raise InvalidInputError(
            f"{path} is truncated or corrupt: its header says {list(shape)}, which is {expected} bytes of values, "
            f"but {found} follow; fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


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


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidInputError(f"{path} is truncated or corrupt: {error}; fetch it again") from error
