"""One row of a journal: a key, an answer as bytes (a number in eight, an array with its shape), a checksum of both."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deepzero.errors import InvalidInputError
from deepzero.executors.queries import is_finite

CHECKSUM_BYTES = 8
NUMBER = struct.Struct("<d")
"""SQLite's own numbers would lose the sign of a zero."""
ARRAY = b"deepzero array "
"""Prefix of the bytes of an array: they are never as few as a number's."""

Answer = float | np.ndarray[Any, Any]


def packed(answers: Mapping[str, Answer | None]) -> Iterator[tuple[str, bytes | None]]:
    """Keys and answers as they are stored; None stands for a skipped query.

    Raises:
        InvalidInputError: an answer is not finite.

    Example:
        >>> [(key, unpack(loss)) for key, loss in packed({"a": -0.0, "b": None})]
        [('a', -0.0), ('b', None)]
    """
    for key, answer in answers.items():
        if answer is not None and not is_finite(answer):
            raise InvalidInputError(f"the journal keeps finite answers and None for a skipped query, got {answer!r}")
        yield key, None if answer is None else _bytes(answer)


def _bytes(answer: Answer) -> bytes:
    if not isinstance(answer, np.ndarray):
        return NUMBER.pack(answer)
    header = f"{answer.dtype.newbyteorder('<').str} {','.join(map(str, answer.shape))};"
    return ARRAY + header.encode() + answer.astype(answer.dtype.newbyteorder("<"), copy=False).tobytes()


def unpack(stored: object) -> Answer | None:
    """The answer in a row whose checksum was right.

    Example:
        >>> ((_, stored),) = packed({"a": np.array([[1.5, -0.0]], dtype=np.float32)})
        >>> unpack(stored)
        array([[ 1.5, -0. ]], dtype=float32)
    """
    if not isinstance(stored, bytes):
        return None
    if not stored.startswith(ARRAY):
        return float(NUMBER.unpack(stored)[0])
    header, _, data = stored.removeprefix(ARRAY).partition(b";")
    dtype, _, sizes = header.decode().partition(" ")
    shape = [int(size) for size in sizes.split(",") if size]
    return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape).copy()


def checksum(key: str, value: object, at: object = None) -> bytes:
    """Digest of a row, 8 bytes: a damaged row has a wrong one but for one time in 2^64.

    Args:
        key: of the query.
        value: the answer as it is stored.
        at: when it was recorded; None where that is not known.

    Example:
        >>> checksum("a", b"12345678") == checksum("b", b"12345678")
        False
    """
    kind = type(value).__name__.encode()
    data = value if isinstance(value, bytes) else str(value).encode()
    when = b"" if at is None else b" at %s" % repr(at).encode()
    row = b"%d %s %s%s" % (len(key), kind, data, when)
    return hashlib.blake2b(row, key=_short(key), digest_size=CHECKSUM_BYTES).digest()


def _short(key: str) -> bytes:
    """A key as at most 64 bytes, which is what keys a hash."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest()
