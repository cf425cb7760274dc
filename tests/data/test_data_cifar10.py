from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from deepzero.data import channel_statistics, load, load_cifar10
from deepzero.data.cifar10 import read_binary, read_parquet
from deepzero.errors import DataNotFoundError, InvalidInputError

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("DEEPZERO_CIFAR10", REPOSITORY / "../shared/data/cifar10"))


def noise(count: int, *, seed: int = 0, size: int = 32) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)


def encode(image: Tensor, *, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, contents: Sequence[bytes | None], labels: Sequence[int | None], *, rows: int = 3) -> None:
    images = pa.array(
        [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"img": images, "label": pa.array(labels, pa.int64())}), path, row_group_size=rows)


def write_binary(path: Path, images: Tensor, labels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = zip(labels.tolist(), images, strict=True)
    path.write_bytes(b"".join(bytes([label]) + image.numpy().tobytes() for label, image in records))


@pytest.mark.parametrize("folder", [".", "plain_text", "data", "cifar10"])
def test_parquet_images_are_exact_and_shards_are_joined_in_order(tmp_path: Path, folder: str) -> None:
    images = noise(10)
    encoded = [encode(image) for image in images]
    write_parquet(tmp_path / folder / "train-00000-of-00002.parquet", encoded[:4], [0, 1, 2, 3])
    write_parquet(tmp_path / folder / "train-00001-of-00002.parquet", encoded[4:8], [4, 5, 6, 7])
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet", encoded[8:], [8, 9])
    train, test = load_cifar10(tmp_path)
    assert torch.equal(torch.cat([train.inputs, test.inputs]), images)
    assert torch.cat([train.labels, test.labels]).tolist() == list(range(10))


def test_parquet_reads_jpeg_and_gray_images_too(tmp_path: Path) -> None:
    gray = torch.full((3, 32, 32), 77, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.new("L", (32, 32), 77).save(buffer, "PNG")
    write_parquet(tmp_path / "x.parquet", [encode(gray, kind="JPEG"), buffer.getvalue()], [0, 1])
    images, labels = read_parquet(tmp_path / "x.parquet")
    assert torch.equal(images, gray.expand(2, -1, -1, -1))
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "label", "message"),
    [
        (b"GIF89a", 0, "row 1 of .*bad.parquet is not a PNG or JPEG"),
        (encode(noise(1)[0])[:900], 0, "row 1 of .*bad.parquet is not a PNG or JPEG"),
        (None, 0, "row 1 of .*bad.parquet is not a PNG or JPEG"),
        (encode(noise(1, size=28)[0]), 0, "row 1 of .*32x32 pixels"),
        (encode(noise(1)[0]), None, "without a label"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: bytes | None, label: int | None, message: str) -> None:
    write_parquet(tmp_path / "bad.parquet", [encode(noise(1)[0]), row], [0, label])
    with pytest.raises(InvalidInputError, match=message):
        read_parquet(tmp_path / "bad.parquet")


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}-0.parquet", [encode(noise(1)[0])], [10])
    with pytest.raises(InvalidInputError, match="0 to 9"):
        load_cifar10(tmp_path)


def test_damaged_and_foreign_parquet_files_are_named(tmp_path: Path) -> None:
    whole, damaged, foreign = (tmp_path / f"{name}.parquet" for name in ("whole", "damaged", "foreign"))
    write_parquet(whole, [encode(image) for image in noise(4)], [0, 1, 2, 3])
    content = whole.read_bytes()
    for damage in (
        content[: len(content) // 2],
        b"",
        content[:-40] + bytes(40),
        bytes(len(content) - 600) + content[-600:],
    ):
        damaged.write_bytes(damage)
        with pytest.raises(InvalidInputError, match=r"damaged\.parquet"):
            read_parquet(damaged)
    for columns in ({"label": [1]}, {"img": [1], "label": [1]}, {"img": [{"path": "x"}], "label": [1]}):
        parquet.write_table(pa.table(columns), foreign)
        with pytest.raises(InvalidInputError, match=r"foreign.parquet.*columns img"):
            read_parquet(foreign)


@pytest.mark.parametrize("inside", [False, True])
def test_binary_images_are_exact_and_batches_are_joined_in_order(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    images, labels = noise(12), torch.arange(12) % 10
    for i in range(5):
        write_binary(folder / f"data_batch_{i + 1}.bin", images[2 * i : 2 * i + 2], labels[2 * i : 2 * i + 2])
    write_binary(folder / "test_batch.bin", images[10:], labels[10:])
    train, test = load_cifar10(folder if inside else tmp_path)
    assert torch.equal(torch.cat([train.inputs, test.inputs]), images)
    assert torch.equal(torch.cat([train.labels, test.labels]), labels)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataNotFoundError, match=r"data_batch_4\.bin is missing"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 - 1])
def test_a_truncated_binary_file_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(InvalidInputError, match=rf"cut\.bin.*3073 bytes, got {size}"):
        read_binary(path)


def test_missing_files_say_where_to_get_them_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPZERO_DATA", str(tmp_path))
    with pytest.raises(DataNotFoundError, match=r"cifar-10-binary\.tar\.gz.*huggingface") as caught:
        load("cifar10")
    assert str(tmp_path / "cifar10") in str(caught.value)


def test_the_pickled_version_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for data_dir in (tmp_path, folder):
        with pytest.raises(DataNotFoundError, match=r"pickle can run any code.*cifar-10-binary\.tar\.gz"):
            load_cifar10(data_dir)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs CIFAR-10 as Parquet files in $DEEPZERO_CIFAR10 or {REAL}")
def test_the_real_test_set_is_balanced_and_has_the_known_statistics() -> None:
    (path,) = sorted(REAL.glob("test-*.parquet"))
    images, labels = read_parquet(path)
    assert images.shape == (10_000, 3, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10
    mean, std = channel_statistics(images, scale=255.0)
    assert mean == pytest.approx((0.494, 0.485, 0.450), abs=0.002)
    assert std == pytest.approx((0.247, 0.243, 0.262), abs=0.005)
