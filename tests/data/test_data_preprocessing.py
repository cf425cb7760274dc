"""New samples are prepared as the training loader prepared its own, bit for bit, or they are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from own_files import flowers, image_folder, noise, npz, table
from PIL import Image
from torch import Tensor

from deepzero import data
from deepzero.data import BatchLoader, Dataset, Preprocessing
from deepzero.errors import DataNotFoundError, InvalidInputError


def trained_on(dataset: Dataset, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a network was given, in the order of the set."""
    (batch,) = BatchLoader(dataset, batch_size=len(dataset), dtype=dtype).iterate()
    return batch[0]


def reloaded(dataset: Dataset) -> Preprocessing:
    return Preprocessing.from_json(json.loads(json.dumps(dataset.preprocessing.to_json())))


def files_of(root: Path, dataset: Dataset, preprocessing: Preprocessing) -> list[Path]:
    """The file of each image of a set, found by its pixels."""
    files = sorted(root.rglob("*.png"))
    by_pixels = {preprocessing.read(file).numpy().tobytes(): file for file in files}
    assert len(by_pixels) == len(files)
    return [by_pixels[image.numpy().tobytes()] for image in dataset.inputs]


# Bit for bit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "image_size"),
    [((12, 10), None), ((12, 12), 8), (lambda k: (30 + k, 40), None)],
    ids=["own", "asked", "squares"],
)
def test_image_files_arrays_and_tensors_give_what_training_gave(
    tmp_path: Path, size: Any, image_size: int | None, dtype: torch.dtype
) -> None:
    splits = data.load(path=image_folder(tmp_path, size=size), image_size=image_size)
    preprocessing, expected = reloaded(splits.train), trained_on(splits.test, dtype)
    files = files_of(tmp_path, splits.test, preprocessing)
    images = [Image.open(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for raw in (files, list(map(str, files)), images, arrays, tensors):
        assert torch.equal(preprocessing(raw, dtype=dtype), expected)
    assert torch.equal(preprocessing(files[0], dtype=dtype), expected[:1])
    assert torch.equal(preprocessing(splits.test.inputs, dtype=dtype), expected)
    assert torch.equal(preprocessing.normalize(splits.test.inputs, dtype=dtype), expected)


def test_a_folder_is_its_files_in_alphabetical_order(tmp_path: Path) -> None:
    splits = data.load(path=image_folder(tmp_path))
    preprocessing = reloaded(splits.train)
    files = data.image_files(tmp_path / "dogs")
    assert [file.name for file in files] == [f"{k:02}.png" for k in range(10)]
    assert torch.equal(preprocessing(tmp_path / "dogs"), preprocessing(files))
    with pytest.raises(DataNotFoundError, match="holds no image"):
        preprocessing(tmp_path)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_of_arrays(tmp_path: Path, channels: int, layout: str) -> None:
    x = noise(30, channels, 6, 5)
    splits = data.load(path=npz(tmp_path / "set.npz", x=x, y=np.arange(30) % 3))
    inputs = splits.test.inputs.numpy()
    raw = inputs.transpose(0, 2, 3, 1) if layout == "NHWC" else inputs
    preprocessing, expected = reloaded(splits.train), trained_on(splits.test)
    assert torch.equal(preprocessing(raw), expected)
    assert torch.equal(preprocessing(torch.from_numpy(raw.copy())), expected)
    assert torch.equal(preprocessing(raw[2]), expected[2:3])
    if channels == 1:
        assert torch.equal(preprocessing(inputs[:, 0]), expected)
        assert torch.equal(preprocessing(inputs[2, 0]), expected[2:3])


def test_gray_arrays_of_any_size_are_resized_as_files_are(tmp_path: Path) -> None:
    for name in ("day", "night"):
        (tmp_path / name).mkdir()
        for k in range(5):
            Image.fromarray(noise(30 + k, 40, seed=k)).save(tmp_path / name / f"{k}.png")
    preprocessing = reloaded(data.load(path=tmp_path).train)
    assert preprocessing.input_shape == (1, 32, 32)
    files = [tmp_path / "day" / f"{k}.png" for k in range(5)]
    one = np.asarray(Image.open(files[3]))
    expected = preprocessing(files[3])
    for raw in (one, one[None], one[..., None], one[None, None], one[None, ..., None]):
        assert torch.equal(preprocessing(raw), expected)
    assert torch.equal(preprocessing(np.stack([one, 255 - one]))[:1], expected)


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_of_white_are_the_same_as_the_bytes_that_they_come_from(tmp_path: Path, dtype: Any, tile: int) -> None:
    x = np.arange(30 * 64, dtype=np.int64).reshape(30, 8, 8).astype(np.uint8)  # every byte
    splits = data.load(path=npz(tmp_path / "set.npz", x=x, y=np.arange(30) % 3), image_size=8 // tile, validation=0)
    preprocessing = reloaded(splits.train)
    assert torch.equal(preprocessing((x / 255).astype(dtype)), preprocessing(x))
    assert preprocessing(x).shape == (30, 1, 8 // tile, 8 // tile)


def test_averaged_images_are_averaged_again(tmp_path: Path) -> None:
    whole, small = data.load("digits"), data.load("digits", image_size=4)
    preprocessing, expected = reloaded(small.train), trained_on(small.test)
    assert torch.equal(preprocessing(whole.test.inputs), expected)
    assert torch.equal(preprocessing(whole.test.inputs.float() / 16), expected)
    with pytest.raises(InvalidInputError, match=r"\[1, 8, 8\].*got \[359, 1, 4, 4\]"):
        preprocessing(small.test.inputs)


def test_sets_of_fractions_and_of_reals(tmp_path: Path) -> None:
    bytes_, labels = noise(30, 6, 6), np.arange(30) % 3
    fractions = data.load(path=npz(tmp_path / "a.npz", x=(bytes_ / 255).astype(np.float32), y=labels)).train
    preprocessing = reloaded(fractions)
    assert torch.equal(preprocessing(fractions.inputs), trained_on(fractions))
    assert torch.equal(preprocessing(bytes_), preprocessing((bytes_ / 255).astype(np.float32)))
    Image.fromarray(bytes_[3]).save(tmp_path / "x.png")
    assert torch.equal(preprocessing(tmp_path / "x.png"), preprocessing(bytes_[3]))
    reals = data.load(path=npz(tmp_path / "b.npz", x=bytes_.astype(np.float64) - 100.5, y=labels)).train
    preprocessing = reloaded(reals)
    assert torch.equal(preprocessing(reals.inputs.numpy().astype(np.float64)), trained_on(reals))
    for raw in (tmp_path / "x.png", bytes_):
        with pytest.raises(InvalidInputError, match="units"):
            preprocessing(raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_in_every_form_give_what_training_gave(tmp_path: Path, dtype: torch.dtype) -> None:
    path = flowers(tmp_path / "flowers.csv")
    splits = data.load(path=path, target="species")
    preprocessing, expected = reloaded(splits.train), trained_on(splits.test, dtype)
    width, year = splits.test.inputs.numpy().T
    columns = {"year": year, "unknown": year, "width": width}  # other order, other columns
    rows = [{"width": a, "year": b} for a, b in zip(width.tolist(), year.tolist(), strict=True)]
    lists = {"width": width.tolist(), "year": year.tolist()}
    again = table(
        tmp_path / "again.csv",
        "year,species,width\n" + "".join(f"{b},?,{a!r}\n" for a, b in splits.test.inputs.tolist()),
    )
    for raw in (
        splits.test.inputs,
        splits.test.inputs.numpy(),
        splits.test.inputs.tolist(),
        columns,
        lists,
        rows,
        pa.table(columns),
        again,
        str(again),
    ):
        assert torch.equal(preprocessing(raw, dtype=dtype), expected)
    assert torch.equal(preprocessing({"width": width[0], "year": year[0]}, dtype=dtype), expected[:1])


class Frame:
    """The part of a pandas data frame that is used: names, columns by name, and ``to_numpy`` of a column."""

    def __init__(self, **columns: Any) -> None:
        self.columns, self._values = list(columns), columns

    def __getitem__(self, name: str) -> pa.Array:
        return pa.array(self._values[name])


def test_data_frames(tmp_path: Path) -> None:
    splits = data.load(path=flowers(tmp_path / "flowers.csv"), target="species")
    width, year = splits.test.inputs.numpy().T
    assert torch.equal(reloaded(splits.train)(Frame(year=year, width=width)), trained_on(splits.test))


def test_float32_rows_are_normalized_alike_by_loader_and_preprocessing() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 1000 + 12345.678
    dataset = Dataset(
        inputs=values,
        labels=torch.arange(50) % 2,
        num_classes=2,
        mean=(12345.0, 12346.0, 12347.0),
        std=(999.0, 1001.0, 1.7),
        scale=1.0,
        name="rows",
    )
    assert torch.equal(dataset.preprocessing(values.numpy()), trained_on(dataset))


# Refused ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def color() -> Preprocessing:
    """Of color images of 10x12 pixels in bytes."""
    return Preprocessing(
        kind="images", input_shape=(3, 10, 12), values="bytes", scale=255.0, mean=(0.5,) * 3, std=(0.2,) * 3
    )


HALVES = np.full((10, 12, 3), 0.5)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (noise(10, 12, 3) * 1.0, ["from 0 (black) to 1 (white)", "x.astype(np.uint8)"]),
        (HALVES * -1, ["not normalized any further", "got -0.5 to -0.5"]),
        (np.round(HALVES + 0.1), ["only 0.0 and 1.0", "(x * 255).astype(np.uint8)", "or x.astype(np.uint8)"]),
        (HALVES > 0, ["got bool"]),
        (HALVES * np.nan, ["must be finite"]),
        (noise(10, 12, 3).astype(np.int64) * 2, ["integer pixels must be from 0 (black) to 255"]),
        (noise(10, 12, 3).astype(np.int64) - 256, ["integer pixels must be from 0 (black) to 255"]),
        (noise(12, 10, 3), ["[3, 10, 12] or [10, 12, 3]", "got [12, 10, 3]"]),
        (noise(10, 12), ["3 channels", "got [10, 12]"]),
        (noise(10, 12, 4), ["3 channels", "got [10, 12, 4]"]),
        (noise(2, 2, 10, 12, 3), ["got [2, 2, 10, 12, 3]"]),
        (noise(0, 10, 12, 3), ["at least one pixel, got shape [0, 10, 12, 3]"]),
        (noise(10, 12, 3).astype("<U3"), ["got <U3"]),
        ([], ["got an empty one"]),
        ([noise(2, 10, 12, 3)], ["item 0 has 2", "np.concatenate"]),
        ({"a": 1}, ["PIL images", "got dict"]),
        (None, ["got NoneType"]),
        ("nowhere.png", ["no file nowhere.png"]),
        (Image.new("RGB", (10, 12)), ["a PIL image of 10x12 pixels has 12x10 pixels (height x width)", "10x12"]),
        (Image.new("I;16", (12, 10)), ["more than 8 bits a channel"]),
    ],
)
def test_images_without_a_single_meaning_are_refused(color: Preprocessing, raw: Any, words: list[str]) -> None:
    with pytest.raises((InvalidInputError, DataNotFoundError)) as caught:
        color(raw)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_black_floats_have_one_meaning(color: Preprocessing) -> None:
    assert torch.equal(color(HALVES * 0), color(np.zeros((10, 12, 3), dtype=np.uint8)))


def test_layouts_that_mean_two_things_are_refused_unless_they_are_the_same(color: Preprocessing) -> None:
    cube = replace(color, input_shape=(3, 3, 3))
    with pytest.raises(InvalidInputError, match="channels first or last"):
        cube(noise(3, 3, 3))
    assert cube(np.full((3, 3, 3), 7, dtype=np.uint8)).shape == (1, 3, 3, 3)


def test_a_white_that_is_not_255(color: Preprocessing) -> None:
    digits = data.load("digits").train.preprocessing
    for raw, words in (
        (noise(8, 8), "to 16"),
        (Image.new("L", (8, 8)), "integers from 0 to 16"),
        (noise(8, 8) / 16.0, r"astype\(np.uint8\)"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            digits(raw)


def test_an_array_that_was_perhaps_resized_already_is_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        image_folder(tmp_path / part, size=(40, 50))
    train, _ = data.load_image_folder(tmp_path, size=32)
    preprocessing = reloaded(train)
    assert preprocessing.shorter_side == 37
    file = tmp_path / "train" / "cats" / "00.png"
    assert torch.equal(preprocessing(file), trained_on(train)[:1])
    assert torch.equal(preprocessing(np.asarray(Image.open(file))), trained_on(train)[:1])
    with pytest.raises(InvalidInputError, match=r"to be resized.*or one that was.*preprocessing\.normalize"):
        preprocessing(train.inputs)
    with pytest.raises(InvalidInputError, match=r"got \[50, 40, 3\]"):
        preprocessing(np.asarray(Image.open(file)) / 255)


@pytest.fixture(scope="module")
def named_rows() -> Preprocessing:
    return Preprocessing(
        kind="table",
        input_shape=(2,),
        values="reals",
        scale=1.0,
        mean=(0.0,) * 2,
        std=(1.0,) * 2,
        column_names=("width", "year"),
        target="species",
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            {"widht": [1.0], "year": [2]},
            ["no column 'width' (is it 'widht'?)", "expected width, year; got widht, year"],
        ),
        ({"year": [2]}, ["no column 'width'"]),
        ({"width": [1.0], "year": ["x"]}, ["column 'year' must hold numbers, got 'x'"]),
        ({"width": [1.0, None], "year": [1, 2]}, ["column 'width' has 1 missing", "the first in row 1"]),
        ({"width": [1.0, 2.0], "year": [1]}, ["same length, got width: 2, year: 1"]),
        ([{"width": 1, "year": 2}, {"width": 1}], ["row 1 has width"]),
        (np.zeros(2), ["[b, 2] in the order width, year", "x.reshape(1, -1)"]),
        (np.zeros((4, 3)), ["[b, 2]", "shape [4, 3]"]),
        (np.array([["a", "b"]]), ["array of numbers", "<U1"]),
        (np.full((1, 2), np.inf), ["rows must be finite"]),
        (3, ["got int"]),
        ("nowhere.csv", ["no file nowhere.csv"]),
    ],
)
def test_rows_that_do_not_fit_are_refused(named_rows: Preprocessing, raw: Any, words: list[str]) -> None:
    with pytest.raises((InvalidInputError, DataNotFoundError)) as caught:
        named_rows(raw)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_columns_without_names_need_an_array(named_rows: Preprocessing) -> None:
    bare = replace(named_rows, column_names=())
    assert bare(np.zeros((3, 2))).shape == (3, 2)
    with pytest.raises(InvalidInputError, match="have no names; give an array"):
        bare({"a": [1], "b": [2]})


# The record ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sounds"}, "images, table"),
        ({"values": "integers"}, "bytes, fractions, reals"),
        ({"input_shape": (3,)}, "input_shape of images has 3 numbers"),
        ({"mean": (0.0,)}, "each of 3 channels"),
        ({"std": (0.0,) * 3}, "be positive"),
        ({"std": (1.0, 1.0, float("inf"))}, "be finite"),
        ({"mean": (0.0, float("nan"), 0.0)}, "be finite"),
        ({"scale": 0.0}, "scale must be a finite number above 0"),
        ({"input_shape": (3, 0, 8)}, "a number of input_shape must be an integer of at least 1"),
        ({"tile": 0}, "a number of tile must be an integer of at least 1"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(color: Preprocessing, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(color, **change)


def test_json_needs_all_fields_and_no_others(color: Preprocessing) -> None:
    record = color.to_json()
    assert Preprocessing.from_json(json.loads(json.dumps(record))) == color
    for odd in ({**record, "more": 1}, {key: value for key, value in record.items() if key != "mean"}):
        with pytest.raises(InvalidInputError, match=r"missing or unknown: (more|mean)"):
            Preprocessing.from_json(odd)


@pytest.mark.parametrize("odd", [None, "", "abc", [], {}, [None, 0, 0], ["0", 0, 0], [True, 0, 0], [[0.0], 0, 0]])
@pytest.mark.parametrize("name", ["mean", "std", "scale", "input_shape", "tile", "class_names", "target"])
def test_a_value_of_another_kind_is_refused_by_its_name(color: Preprocessing, name: str, odd: Any) -> None:
    """Else it would raise when the first image is predicted, or be taken for a number."""
    if (name, odd) in (("class_names", []), ("target", None), ("target", ""), ("target", "abc")):
        return
    with pytest.raises(InvalidInputError, match=r"of a preprocessing cannot be|has 3 numbers|for each of 3 channels"):
        Preprocessing.from_json({**color.to_json(), name: odd})
