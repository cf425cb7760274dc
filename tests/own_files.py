"""Small files and folders of the kinds that people bring."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]


def noise(*shape: int, seed: int = 0) -> Array:
    """Bytes at random."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image_folder(
    root: Path, *, classes: tuple[str, ...] = ("cats", "dogs"), count: int = 10, size: Any = (12, 10)
) -> Path:
    """``root/CLASS/*.png`` in color; ``size`` is width and height, or a function of the number of the image."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            width, height = size(k) if callable(size) else size
            Image.fromarray(noise(height, width, 3, seed=100 * label + k)).save(root / name / f"{k:02}.png")
    return root


def npz(path: Path, **arrays: Array) -> Path:
    """An ``.npz`` file; arrays of objects are pickled, as NumPy does by default."""
    np.savez(path, **arrays)
    return path


def table(path: Path, text: str) -> Path:
    """A text file."""
    path.write_text(text, encoding="utf-8")
    return path


def flowers(path: Path, *, rows: int = 30) -> Path:
    """A CSV file of two numbers and a text, ``species``, that is not the last column."""
    draw = np.random.default_rng(0)
    lines = [f"{draw.normal():.6f},{'abc'[i % 3]},{1990 + draw.integers(0, 30)}" for i in range(rows)]
    return table(path, "\n".join(["width,species,year", *lines]) + "\n")


def idx(path: Path, values: Array) -> Path:
    """An IDX file of unsigned bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())
    return path
