from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from deepzero.data.idx import read_idx
from deepzero.errors import InvalidInputError

VALUES = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3]) + bytes([0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_the_format_says(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(CONTENT) if compressed else CONTENT)
    assert torch.equal(read_idx(path), VALUES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing"),
        (b"PK\x03\x04 something else", "00 00 08, got 50 4b 03"),
        (bytes([0, 0, 13]) + CONTENT[3:], "got 00 00 0d"),
        (CONTENT[:9], "ends within its header"),
        (CONTENT[:-1], "24 bytes of values, but 23 follow"),
        (CONTENT + b"\0", "24 bytes of values, but more follow"),
        (gzip.compress(CONTENT)[:-12], "truncated or corrupt"),
        (gzip.compress(CONTENT)[:-8] + bytes(8), "truncated or corrupt"),
    ],
    ids=["empty", "zip", "kind", "header", "short", "long", "gzip_short", "gzip_checksum"],  # gzip holds the time
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=f"damaged.*{message}"):
        read_idx(path)
