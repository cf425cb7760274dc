"""One row of a journal: a key, an answer as eight bytes, and a checksum of both."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping

from deepzero.errors import InvalidInputError

CHECKSUM_BYTES = 8
NUMBER = struct.Struct("<d")
"""SQLite's own numbers would lose the sign of a zero."""


def packed(answers: Mapping[str, float | None]) -> Iterator[tuple[str, bytes | None]]:
    """Keys and answers as they are stored; None stands for a skipped query.

    Raises:
        InvalidInputError: an answer is not finite.

    Example:
        >>> [(key, unpack(loss)) for key, loss in packed({"a": -0.0, "b": None})]
        [('a', -0.0), ('b', None)]
    """
    for key, loss in answers.items():
        if loss is not None and not math.isfinite(loss):
            raise InvalidInputError(f"the journal keeps finite losses and None for a skipped query, got {loss!r}")
        yield key, None if loss is None else NUMBER.pack(loss)


def unpack(stored: object) -> float | None:
    """The answer in a row whose checksum was right."""
    return float(NUMBER.unpack(stored)[0]) if isinstance(stored, bytes) else None


def checksum(key: str, value: object) -> bytes:
    """Digest of a row, 8 bytes: a damaged row has a wrong one but for one time in 2^64.

    Example:
        >>> checksum("a", b"12345678") == checksum("b", b"12345678")
        False
    """
    kind = type(value).__name__.encode()
    data = value if isinstance(value, bytes) else str(value).encode()
    return hashlib.blake2b(b"%d %s %s" % (len(key), kind, data), key=_short(key), digest_size=CHECKSUM_BYTES).digest()


def _short(key: str) -> bytes:
    """A key as at most 64 bytes, which is what keys a hash."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=32).digest()
