"""CIFAR-10: 50,000 and 10,000 color images of ten kinds of things, 32x32 pixels.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from deepzero.data.columns import parquet_table
from deepzero.data.data_files import candidate_folders, not_found, require_file, require_memory
from deepzero.data.dataset import Dataset
from deepzero.data.image_files import pillow
from deepzero.errors import DataNotFoundError, InvalidInputError
from deepzero.extras import required_for
from deepzero.text import one_line

SIZE = 32
PIXELS = 3 * SIZE * SIZE
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Part = tuple[UInt8[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]

BINARY_FOLDER, PICKLE_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_TRAIN, BINARY_TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)
BINARY_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PARQUET_FOLDERS = (".", "plain_text", "data")  # the last two as in repositories of Hugging Face


def load_cifar10(data_dir: str | os.PathLike[str] | None = None) -> tuple[Dataset, Dataset]:
    """Training and test set, from Parquet files or from the binary version.

    Parquet: ``train-*.parquet`` and ``test-*.parquet`` with the columns ``img`` (a struct whose ``bytes`` are a PNG or
    JPEG file) and ``label``, as in Hugging Face's set ``cifar10``. Binary: the folder ``cifar-10-batches-bin``.
    The Python version, ``cifar-10-batches-py``, is pickled; a pickle can run any code, so it is not read.

    Args:
        data_dir: the folder of the files, or the one above.

    Raises:
        DataNotFoundError: neither version is there.
        InvalidInputError: a file is truncated or corrupt.
    """
    train, test = find_cifar10(data_dir)
    read = read_parquet if train[0].suffix == ".parquet" else read_binary
    return _dataset(map(read, train)), _dataset(map(read, test))


def find_cifar10(data_dir: str | os.PathLike[str] | None = None) -> tuple[list[Path], list[Path]]:
    """Training and test files, Parquet or binary.

    Raises:
        DataNotFoundError: neither version is there, or not whole.
    """
    folders = candidate_folders("cifar10", data_dir)
    for folder in folders:
        for parquet in (folder / name for name in PARQUET_FOLDERS):
            train, test = sorted(parquet.glob("train-*.parquet")), sorted(parquet.glob("test-*.parquet"))
            if train and test:
                return train, test
        for binary in (folder / BINARY_FOLDER, folder):
            if (binary / BINARY_TEST[0]).is_file():
                return [_present(binary / name) for name in BINARY_TRAIN], [_present(binary / BINARY_TEST[0])]
    raise _missing(folders)


def read_parquet(path: Path) -> Part:
    """Images and labels of one Parquet file.

    Raises:
        InvalidInputError: the file is corrupt, a column is missing, or a row is not a 32x32 PNG or JPEG image.
    """
    with required_for("a Parquet file"):
        import pyarrow  # noqa: F401, PLC0415 - slow to import

    require_file(path)
    try:
        table = parquet_table(path, columns=["img.bytes", "label"])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_pylist()
    except InvalidInputError:
        raise
    except Exception as error:  # PyArrow's, of many kinds
        raise InvalidInputError(
            f"{path} is truncated, corrupt or another set: expected a Parquet file with the columns img (a struct with "
            f"the field bytes) and label; {one_line(error)}; fetch it again"
        ) from error
    images = np.empty((len(encoded), SIZE, SIZE, 3), np.uint8)
    # One after another: for images this small the interpreter is the limit, and threads made it slower.
    for row, content in enumerate(encoded):
        images[row] = _decode(content, row=row, path=path)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), _labels(labels, path)


def read_binary(path: Path) -> Part:
    """Images and labels of one binary file.

    A record is one byte, the label, and 3,072 bytes, the red, green and blue planes in row-major order.

    Raises:
        InvalidInputError: the file does not consist of such records.
    """
    require_file(path)
    require_memory(path, path.stat().st_size)
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % (1 + PIXELS):
        raise InvalidInputError(
            f"{path} is truncated or corrupt: expected records of {1 + PIXELS} bytes, got {content.size} bytes; "
            f"unpack it again from {BINARY_SOURCE}"
        )
    records = torch.from_numpy(content).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, SIZE, SIZE), records[:, 0].long()


def _decode(content: bytes | None, *, row: int, path: Path) -> npt.NDArray[np.uint8]:
    Image = pillow()  # noqa: N806 - Pillow's name
    try:
        image = Image.open(io.BytesIO(content or b""), formats=("PNG", "JPEG"))  # its header alone
        if image.size == (SIZE, SIZE):
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow's, of many kinds
        raise InvalidInputError(
            f"row {row} of {path} is not a PNG or JPEG image: {one_line(error)}; fetch the file again"
        ) from error
    raise InvalidInputError(f"row {row} of {path} should be an image of {SIZE}x{SIZE} pixels, got {image.size}")


def _labels(labels: Sequence[int | None], path: Path) -> Int64[Tensor, " n"]:
    if None in labels:
        raise InvalidInputError(f"{path} has rows without a label; fetch it again")
    if odd := [label for label in labels if type(label) is not int or not 0 <= label < len(CLASSES)]:
        raise InvalidInputError(f"{path} has the label {odd[0]!r}; expected whole numbers from 0 to 9; fetch it again")
    return torch.tensor(labels, dtype=torch.int64)


def _dataset(parts: Iterable[Part]) -> Dataset:
    images, labels = zip(*parts, strict=True)
    return Dataset(
        inputs=torch.cat(images),
        labels=torch.cat(labels),
        num_classes=10,
        class_names=CLASSES,
        mean=MEAN,
        std=STD,
        name="cifar10",
    )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataNotFoundError(f"{path} is missing; unpack all six .bin files again from {BINARY_SOURCE}")
    return path


def _missing(folders: Sequence[Path]) -> DataNotFoundError:
    pickled = [folder for folder in folders if (folder / PICKLE_FOLDER).is_dir() or (folder / "batches.meta").is_file()]
    hint = ""
    if pickled:
        hint = (
            f"There is the Python version in {pickled[0].absolute()}, but it is pickled and a pickle can run any code, "
            "so it is never read. "
        )
    return not_found(
        "CIFAR-10",
        folders,
        where_to_get=(
            f"{hint}Get the binary version from {BINARY_SOURCE}, or the Parquet files from "
            "https://huggingface.co/datasets/uoft-cs/cifar10 (plain_text)."
        ),
        what_to_put=f"the folder {BINARY_FOLDER}, or train-*.parquet and test-*.parquet,",
    )
