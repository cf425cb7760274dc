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

from deepzero.errors import InvalidInputError

UNSIGNED_BYTE = 8
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


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != GZIP_MAGIC:
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise InvalidInputError(f"{path} is truncated or corrupt: {error}; fetch it again") from error
