"""Files and folders of one's own become the right inputs, labels and splits."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from own_files import flowers, idx, image_folder, noise, npz, table
from PIL import Image
from pyarrow import parquet

from deepzero import data
from deepzero.data import Dataset, Splits
from deepzero.data.npz import read_inputs
from deepzero.errors import DataNotFoundError, InvalidInputError


def everything(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    parts = (splits.train, splits.validation, splits.test)
    return torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])


def multiset(inputs: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> list[Any]:
    rows = inputs.flatten(1).tolist()
    return sorted((row, names[label]) for row, label in zip(rows, labels.tolist(), strict=True))


# Folders ---------------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes_becomes_three_stratified_sets_of_exactly_its_pixels(tmp_path: Path) -> None:
    image_folder(tmp_path, count=20)
    splits = data.load(path=tmp_path, validation=0.25)
    assert [part.labels.bincount().tolist() for part in (splits.train, splits.validation, splits.test)] == [
        [12, 12],
        [4, 4],
        [4, 4],
    ]
    assert splits.train.class_names == ("cats", "dogs")
    assert splits.train.input_shape == (3, 10, 12)  # their own size, which need not be square
    expected = [
        (noise(10, 12, 3, seed=100 * c + k).transpose(2, 0, 1).ravel().tolist(), "cats" if c == 0 else "dogs")
        for c in (0, 1)
        for k in range(20)
    ]
    assert multiset(*everything(splits), splits.train.class_names) == sorted(expected)


def test_the_test_set_of_a_folder_does_not_depend_on_the_seed_and_validation_does(tmp_path: Path) -> None:
    image_folder(tmp_path, count=20)
    first, second = (data.load(path=tmp_path, seed=seed, validation=0.25) for seed in (0, 1))
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert not torch.equal(first.validation.inputs, second.validation.inputs)
    assert len(data.load(path=tmp_path, test=0.5).test) == 20


def test_statistics_are_those_of_the_training_images_before_validation_is_held_out(tmp_path: Path) -> None:
    splits = data.load(path=image_folder(tmp_path), validation=0.25)
    pixels = torch.cat([splits.train.inputs, splits.validation.inputs]).double() / 255
    assert splits.test.mean == splits.train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert splits.train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": 10, "test": 3}, (18, 2, 6)),
        ({"train": 10, "val": 3}, (18, 2, 6)),
        ({"train": 10, "valid": 4, "test": 3}, (20, 8, 6)),
        ({"train": 10}, (14, 2, 4)),
    ],
)
def test_parts_that_a_folder_has_are_kept(tmp_path: Path, folders: dict[str, int], sizes: tuple[int, ...]) -> None:
    for part, count in folders.items():
        image_folder(tmp_path / part, count=count)
    assert data.detect(tmp_path) == "image-folder"
    splits = data.load(path=tmp_path)
    assert tuple(map(len, (splits.train, splits.validation, splits.test))) == sizes


def test_images_of_several_sizes_become_squares_by_the_rule_that_is_told(tmp_path: Path) -> None:
    image_folder(tmp_path, size=lambda k: (40 + k, 50))  # shorter sides 40 to 49: median 44 (of 44 and 45)
    splits = data.load(path=tmp_path)
    assert splits.train.image_shape == (3, 32, 32)
    assert splits.train.shorter_side == 32
    assert any("10 different sizes" in note and "32x32" in note and "--image-size" in note for note in splits.notes)
    assert data.load(path=tmp_path, image_size=20).train.image_shape == (3, 20, 20)


@pytest.mark.parametrize(("side", "expected"), [(9, 16), (300, 64)])
def test_the_rule_for_squares_has_bounds(tmp_path: Path, side: int, expected: int) -> None:
    image_folder(tmp_path, count=3, size=lambda k: (side, side + k))
    assert data.load(path=tmp_path, test=0.4).train.image_shape == (3, expected, expected)


def test_gray_files_stay_gray_unless_one_has_color(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for k in range(4):
            Image.fromarray(noise(8, 8, seed=k)).save(tmp_path / name / f"{k}.png")
    gray = data.load(path=tmp_path, test=0.25)
    assert gray.train.image_shape == (1, 8, 8)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "cats" / "9.png")
    mixed = data.load(path=tmp_path, test=0.25)
    assert mixed.train.image_shape == (3, 8, 8)
    inputs, _ = everything(mixed)
    assert (inputs == torch.tensor([1, 2, 3]).reshape(3, 1, 1)).flatten(1).all(1).sum() == 1


def test_the_limit_of_a_path_is_drawn_at_random_since_samples_may_lie_in_the_order_of_classes(tmp_path: Path) -> None:
    image_folder(tmp_path, count=40)
    splits = data.load(path=tmp_path, limit=20)
    counts = splits.train.labels.bincount(minlength=2)
    assert int(counts.sum()) == 20
    assert int(counts.min()) >= 5
    assert torch.equal(splits.train.inputs, data.load(path=tmp_path, limit=20).train.inputs)


def test_what_systems_leave_in_folders_does_not_count(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("nothing")
    (tmp_path / "cats" / "._00.png").write_bytes(b"nothing")
    assert data.load(path=tmp_path).train.class_names == ("cats", "dogs")


# Arrays ----------------------------------------------------------------------------------------------------------------

X, Y = noise(30, 6, 6), np.arange(30) % 3


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        ("x", "y"),
        ("X", "Y"),
        ("images", "labels"),
        ("features", "target"),
        ("data", "target"),
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("arr_0", "arr_1"),
    ],
)
def test_usual_names_of_arrays(tmp_path: Path, inputs: str, labels: str) -> None:
    path = npz(tmp_path / "set.npz", **{inputs: X, labels: Y})
    assert data.detect(path) == "npz"
    found = data.load(path=path)
    assert multiset(*everything(found), found.train.class_names) == multiset(
        torch.from_numpy(X), torch.from_numpy(Y), ("0", "1", "2")
    )
    assert found.train.input_shape == (1, 6, 6)


@pytest.mark.parametrize("form", ["x_{}", "{}_images", "{}_x", "x{}"])
def test_parts_of_an_npz_file_are_kept(tmp_path: Path, form: str) -> None:
    arrays = {}
    for k, (part, count) in enumerate({"train": 30, "val": 6, "test": 9}.items()):
        arrays[form.format(part)] = noise(count, 6, 6, seed=k)
        arrays[form.format(part).replace("x", "y").replace("images", "labels")] = (np.arange(count) % 3)[:, None]
    splits = data.load(path=npz(tmp_path / "set.npz", **arrays))
    for k, part in enumerate((splits.train, splits.validation, splits.test)):
        assert np.array_equal(part.inputs[:, 0].numpy(), noise(len(part), 6, 6, seed=k))
    assert tuple(map(len, (splits.train, splits.validation, splits.test))) == (30, 6, 9)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 5, 6, 3), (3, 5, 6)),
        ((8, 3, 5, 6), (3, 5, 6)),
        ((8, 5, 5, 1), (1, 5, 5)),
        ((8, 5, 6), (1, 5, 6)),
        ((8, 9, 5, 5), (9, 5, 5)),
        ((8, 5, 5, 9), (9, 5, 5)),
        ((8, 1, 4, 4), (1, 4, 4)),
        ((8, 7), (7,)),
    ],
)
def test_layouts_are_told_apart_by_their_channels(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    x = noise(*shape)
    splits = data.load(path=npz(tmp_path / "set.npz", x=x, y=np.arange(8) % 2), test=0.25)
    assert splits.train.input_shape == expected
    last = len(shape) == 4 and shape[-1] == expected[0]
    rows = np.moveaxis(x, -1, 1).reshape(8, -1) if last else x.reshape(8, -1)
    assert sorted(everything(splits)[0].flatten(1).tolist()) == sorted(rows.tolist())


@pytest.mark.parametrize(
    ("x", "values", "scale", "dtype"),
    [
        (X, "bytes", 255.0, torch.uint8),
        (X.astype(np.int64), "bytes", 255.0, torch.uint8),
        (X // 16, "bytes", 15.0, torch.uint8),
        (X.astype(np.float32) / 255, "fractions", 1.0, torch.float32),
        (X.astype(np.float64) - 100, "reals", 1.0, torch.float32),
        (X.astype(np.uint16) * 200, "reals", 1.0, torch.float32),
    ],
)
def test_units_of_pixels(tmp_path: Path, x: np.ndarray, values: str, scale: float, dtype: torch.dtype) -> None:
    found = data.load(path=npz(tmp_path / "set.npz", x=x, y=Y))
    assert (found.train.preprocessing.values, found.train.scale, found.train.inputs.dtype) == (values, scale, dtype)
    assert sorted(everything(found)[0].flatten(1).double().tolist()) == sorted(
        x.astype(np.float32).reshape(30, -1).astype(float).tolist()
    )
    assert bool(found.notes[0].startswith("set.npz")) == (scale == 15.0 or values == "reals")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (Y + 1, ("1", "2", "3")),
        (Y * 7.0, ("0", "7", "14")),
        (np.array(["b", "a", "c"])[Y], ("a", "b", "c")),
        (Y == 1, ("0", "1")),
    ],
)
def test_labels_are_numbered_in_order(tmp_path: Path, labels: np.ndarray, names: tuple[str, ...]) -> None:
    found = data.load(path=npz(tmp_path / "set.npz", x=X, y=labels), validation=0)
    assert found.train.class_names == names
    texts = {str(value): row for value, row in zip(labels.tolist(), X, strict=True)}
    assert len(texts) == len(names)
    inputs, numbers = everything(found)
    by_pixels = {row.tobytes(): label for row, label in zip(X, labels.tolist(), strict=True)}
    for image, number in zip(inputs, numbers.tolist(), strict=True):
        label = by_pixels[image.numpy().tobytes()]
        assert names[number] == (label if isinstance(label, str) else str(int(label)))


def test_names_in_the_file_are_used_and_others_are_told(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "set.npz",
        data=noise(30, 4),
        target=Y,
        target_names=np.array(["p", "q", "r"]),
        feature_names=np.array(list("abcd")),
        weights=Y,
    )
    found = data.load(path=path)
    assert found.train.class_names == ("p", "q", "r")
    assert found.train.column_names == ("a", "b", "c", "d")
    assert "set.npz: not used: weights" in found.notes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x"], "x"),
        (["y", "image"], "image"),
        (["test_images", "train_images", "test_labels", "train_labels"], "test_images"),
        (["x_train", "x_val"], "x_train"),
        (["Xtest", "X", "y"], "Xtest"),
    ],
)
def test_the_inputs_of_a_file_are_found_by_the_names_that_training_knows(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    arrays = {name: np.full((2, 3), place) for place, name in enumerate(names)}
    found = read_inputs(npz(tmp_path / "set.npz", **arrays))
    assert np.array_equal(found, arrays[expected])


def test_a_file_without_inputs_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds y, weights; the array to predict on must be called x"):
        read_inputs(npz(tmp_path / "set.npz", y=Y, weights=Y))
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(b"no array")
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read_inputs(tmp_path / name)
    np.save(tmp_path / "x.npy", X)
    assert np.array_equal(read_inputs(tmp_path / "x.npy"), X)


def test_other_files_in_an_npz_file_are_not_read(tmp_path: Path) -> None:
    path = npz(tmp_path / "set.npz", x=X, y=Y)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "made by hand")
    assert data.load(path=path).train.input_shape == (1, 6, 6)


def test_images_of_a_file_are_averaged_and_a_channel_that_never_changes_is_left_at_0(tmp_path: Path) -> None:
    x = noise(30, 8, 8, 3)
    x[..., 1] = 7
    found = data.load(path=npz(tmp_path / "set.npz", x=x, y=Y), image_size=4)
    assert (found.train.image_shape, found.train.tile) == ((3, 4, 4), 2)
    assert found.train.std[1] == 1.0
    assert any("channels 1 never change" in note for note in found.notes)
    batch, _ = data.BatchLoader(found.train, batch_size=5).batch(0, 0)
    assert batch[:, 1].abs().max() == 0


# Tables ----------------------------------------------------------------------------------------------------------------


def test_a_table_has_its_target_by_name_and_numbers_as_features(tmp_path: Path) -> None:
    path = flowers(tmp_path / "flowers.csv")
    assert data.detect(path) == "csv"
    found = data.load(path=path, target="species")
    assert (found.train.column_names, found.train.target, found.train.class_names) == (
        ("width", "year"),
        "species",
        ("a", "b", "c"),
    )
    assert found.train.inputs.dtype == torch.float64
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert multiset(*everything(found), found.train.class_names) == sorted(
        ([float(a), float(c)], b) for a, b, c in lines
    )


@pytest.mark.parametrize(
    ("header", "target", "told"),
    [("a,Label,b", "Label", "by its name"), ("y,a,b", "y", "by its name"), ("a,b,kind", "kind", "last column")],
)
def test_the_target_by_default(tmp_path: Path, header: str, target: str, told: str) -> None:
    rows = "".join(f"{i % 2},{i % 2},{i % 2}\n" for i in range(20))
    found = data.load(path=table(tmp_path / "t.csv", f"{header}\n{rows}"))
    assert found.train.target == target
    assert told in found.notes[0]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark(tmp_path: Path, delimiter: str) -> None:
    text = flowers(tmp_path / "flowers.csv").read_text().replace(",", delimiter)
    (tmp_path / "other.csv").write_text(text, encoding="utf-8-sig")
    first, second = (data.load(path=tmp_path / f"{name}.csv", target="species") for name in ("flowers", "other"))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert first.train.column_names == second.train.column_names


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    from pyarrow import csv

    parquet.write_table(csv.read_csv(flowers(tmp_path / "flowers.csv")), tmp_path / "flowers.parquet")
    assert data.detect(tmp_path / "flowers.parquet") == "parquet"
    first, second = (data.load(path=tmp_path / f"flowers.{kind}", target="species") for kind in ("csv", "parquet"))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.train.labels, second.train.labels)


def test_categories_of_pandas_are_texts(tmp_path: Path) -> None:
    columns = {"a": pa.array(range(20)), "kind": pa.array(["x", "y"] * 10).dictionary_encode()}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert data.load(path=tmp_path / "t.parquet").train.class_names == ("x", "y")


def test_a_column_far_from_zero_keeps_its_digits(tmp_path: Path) -> None:
    rows = "".join(f"{1.7e9 + i},{i % 2}\n" for i in range(20))  # seconds: float32 would round them to 128
    found = data.load(path=table(tmp_path / "t.csv", f"time,label\n{rows}"), validation=0)
    batch, _ = data.BatchLoader(found.train, batch_size=16).batch(0, 0)
    exact = (found.train.inputs[:, 0] - found.train.mean[0]) / found.train.std[0]
    torch.testing.assert_close(batch[:, 0].double(), exact, rtol=1e-6, atol=1e-7)
    assert len(batch[:, 0].unique()) == 16


def test_a_column_that_counts_the_rows_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i * i},{i % 2}\n" for i in range(20))
    found = data.load(path=table(tmp_path / "t.csv", f"id,a,label\n{rows}"))
    assert any("column id counts the rows" in note for note in found.notes)


# IDX and CIFAR-10 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte", "emnist-letters-{}-images-idx3-ubyte"]
)
def test_a_folder_of_idx_files(tmp_path: Path, name: str) -> None:
    for part, count in {"train": 30, "test": 9}.items():
        idx(tmp_path / name.format(part), noise(count, 5, 5, seed=count))
        idx(tmp_path / name.format(part).replace("images", "labels").replace("idx3", "idx1"), np.arange(count) % 3 + 1)
    assert data.detect(tmp_path) == "idx"
    found = data.load(path=tmp_path, validation=0)
    assert np.array_equal(found.train.inputs[:, 0].numpy(), noise(30, 5, 5, seed=30))
    assert np.array_equal(found.test.inputs[:, 0].numpy(), noise(9, 5, 5, seed=9))
    assert found.train.class_names == ("1", "2", "3")
    assert found.train.labels.tolist() == [0, 1, 2] * 10


def test_idx_files_need_their_labels(tmp_path: Path) -> None:
    idx(tmp_path / "train-images-idx3-ubyte", noise(4, 5, 5))
    with pytest.raises(DataNotFoundError, match="train-labels-idx1-ubyte is missing"):
        data.load(path=tmp_path)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "t10k-images-idx3-ubyte")
    with pytest.raises(DataNotFoundError, match="no file train-images"):
        data.load(path=tmp_path)


def test_cifar10_by_its_path(tmp_path: Path) -> None:
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        records = np.concatenate([np.arange(4, dtype=np.uint8)[:, None], noise(4, 3072)], axis=1)
        records.tofile(tmp_path / f"{name}.bin")
    assert data.detect(tmp_path) == "cifar10"
    found = data.load(path=tmp_path, validation=0)
    assert (len(found.train), len(found.test), found.train.class_names[3]) == (20, 4, "cat")
    assert np.array_equal(found.test.inputs.numpy().reshape(4, -1), noise(4, 3072))


def test_the_pickled_cifar10_is_refused_by_its_path_too(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(b"x")
    with pytest.raises(DataNotFoundError, match="pickle can run any code"):
        data.load(path=tmp_path)


# Options ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "csv"}, "of the kind npz, not csv"),
        ({"name": "digits"}, "kinds of data"),
        ({"data_dir": "x"}, "leave data_dir out"),
        ({"target": "y"}, "is for tables"),
        ({"test": 0}, r"in \(0, 1\)"),
        ({"test": 1.0}, r"in \(0, 1\)"),
        ({"test": 0.01}, "too few samples"),
        ({"validation": 1.0}, r"\[0, 1\)"),
        ({"image_size": 4}, "1, 2, 3, 6"),
        ({"image_size": 0}, "image_size"),
        ({"limit": 0}, "limit"),
    ],
)
def test_options_that_do_not_fit_a_path(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = npz(tmp_path / "set.npz", x=X, y=Y)
    with pytest.raises(InvalidInputError, match=message):
        data.load(**{"path": path, **options})


def test_options_that_do_not_fit_what_was_found(tmp_path: Path) -> None:
    path = npz(tmp_path / "set.npz", x=X, y=Y, x_test=X, y_test=Y)
    with pytest.raises(InvalidInputError, match=r"test set of its own.*leave it out"):
        data.load(path=path, test=0.2)
    with pytest.raises(InvalidInputError, match="table has no image_size"):
        data.load(path=flowers(tmp_path / "t.csv"), target="species", image_size=8)
    with pytest.raises(InvalidInputError, match="data of your own"):
        data.load("digits", target="y")
    with pytest.raises(InvalidInputError, match="name a data set"):
        data.load()
    with pytest.raises(InvalidInputError, match=r"did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(InvalidInputError, match=r"give path="):
        data.load(str(path))


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_global_generators_are_not_used(tmp_path: Path) -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    data.load(path=image_folder(tmp_path), limit=3)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


# The record of a set ---------------------------------------------------------------------------------------------------


def rows(**change: Any) -> Dataset:
    fields: dict[str, Any] = {
        "inputs": torch.zeros(4, 2),
        "labels": torch.tensor([0, 1, 0, 1]),
        "num_classes": 2,
        "mean": (0.0, 0.0),
        "std": (1.0, 1.0),
        "scale": 1.0,
        "name": "rows",
    }
    return Dataset(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a",)}, "class_names of 'rows' must be 2 different names"),
        ({"class_names": ("a", "a")}, "different"),
        ({"column_names": ("a", "b", "c")}, "column_names of 'rows' must be 2"),
        ({"inputs": torch.zeros(4, 2, dtype=torch.uint8)}, "float32 or float64"),
        ({"inputs": torch.zeros(4, 2, 3, 3), "column_names": ("a", "b")}, "no column_names"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_names_and_types_of_a_set_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rows(**change)


def test_rows_are_no_images() -> None:
    with pytest.raises(InvalidInputError, match=r"images are needed.*table of 2 columns.*mlp"):
        _ = rows().image_shape
    with pytest.raises(InvalidInputError, match="rows cannot be cropped"):
        data.BatchLoader(rows(), batch_size=2, augmentation=data.Augmentation())
    assert rows().input_shape == (2,)
