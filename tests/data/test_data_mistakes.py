"""Ordinary mistakes with data of one's own: every answer names the cause and what to do."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from own_files import flowers, idx, image_folder, noise, npz, table
from PIL import Image
from pyarrow import parquet

from deepzero import data
from deepzero.data import image_folders as folder
from deepzero.errors import DataNotFoundError, InvalidInputError

Mistake = tuple[Callable[[Path], Path], list[str]]

X, Y = noise(30, 6, 6), np.arange(30) % 3


def said(path: Path, **options: object) -> str:
    with pytest.raises((InvalidInputError, DataNotFoundError)) as caught:
        data.load(path=path, **options)
    return str(caught.value)


def check(mistake: Mistake, tmp_path: Path, **options: object) -> None:
    make, words = mistake
    message = said(make(tmp_path), **options)
    for word in words:
        assert word in message, message


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


# Folders ---------------------------------------------------------------------------------------------------------------


def near_miss(root: Path) -> Path:
    image_folder(root / "animals")
    return root / "animal"


def near_miss_above(root: Path) -> Path:
    image_folder(root / "animals" / "photos")
    return root / "animls" / "photos"


def empty_folder(root: Path) -> Path:
    (root / "animals").mkdir()
    return root / "animals"


def empty_class(root: Path) -> Path:
    (image_folder(root) / "mice").mkdir()
    return root


def one_class(root: Path) -> Path:
    return image_folder(root, classes=("cats",))


def flat_images(root: Path) -> Path:
    return image_folder(root, classes=("animals",)) / "animals"


def too_deep(root: Path) -> Path:
    return image_folder(root / "archive" / "animals").parents[1] / "archive"


def deep_in_one_class(root: Path) -> Path:
    image_folder(root)
    image_folder(root / "mice", classes=("white", "gray"))
    return root


def parts_of_other_names(root: Path) -> Path:
    image_folder(root / "Training")
    image_folder(root / "Testing")
    return root


def other_classes(root: Path) -> Path:
    image_folder(root / "train")
    image_folder(root / "test", classes=("cats", "mice"))
    return root


def unlabelled_test(root: Path) -> Path:
    image_folder(root / "train")
    image_folder(root, classes=("test",))
    return root


def broken_image(root: Path) -> Path:
    (image_folder(root) / "cats" / "03.png").write_bytes(b"no image")
    return root


def cut_image(root: Path) -> Path:
    path = image_folder(root, size=(40, 40)) / "cats" / "03.png"
    path.write_bytes(path.read_bytes()[:2000])
    return root


def deep_image(root: Path) -> Path:
    image_folder(root)
    save(root / "cats" / "99.png", Image.fromarray(noise(10, 12).astype(np.uint16) * 200))
    return root


def archive(root: Path) -> Path:
    with zipfile.ZipFile(root / "animals.zip", "w") as file:
        file.writestr("cats/0.png", b"x")
    return root / "animals.zip"


def archive_in_folder(root: Path) -> Path:
    return archive(root).parent


def one_image(root: Path) -> Path:
    return image_folder(root) / "cats" / "00.png"


def tables_in_folder(root: Path) -> Path:
    return flowers(root / "flowers.csv").parent


def something_else(root: Path) -> Path:
    (root / "readme.md").write_text("hello")
    return root


@pytest.mark.parametrize(
    "mistake",
    [
        (near_miss, ["there is no file or folder", "did you mean", "/animals?"]),
        (near_miss_above, ["there is no file or folder", "did you mean", "/animals?", "has no 'animls'"]),
        (empty_folder, ["it is an empty folder"]),
        (empty_class, ["mice holds no image", ".png", "put some in, or take the folder away"]),
        (one_class, ["one class only, 'cats'", "put every class into a folder of its own"]),
        (flat_images, ["00.png, lie in the folder itself", "a folder of its own, such as"]),
        (too_deep, ["lie too deep", "archive/animals looks like the one to name"]),
        (deep_in_one_class, ["mice holds no image", "gray, white) are not looked into"]),
        (parts_of_other_names, ["it holds Testing, Training", "rename these to train and test"]),
        (other_classes, ["same classes", "dogs, mice"]),
        (unlabelled_test, ["test have no class", "take it away"]),
        (broken_image, ["03.png cannot be read as an image", "mend it or take it away"]),
        (cut_image, ["03.png cannot be read as an image", "mend it or take it away"]),
        (deep_image, ["99.png has more than 8 bits a channel", "bring it to 8 bits first"]),
        (archive, ["animals.zip is no data set", "it is an archive; unpack it"]),
        (archive_in_folder, ["it holds the archive animals.zip; unpack it first"]),
        (one_image, ["it is a single image", "a folder of images for each class"]),
        (tables_in_folder, ["name a file in it", "flowers.csv"]),
        (something_else, ["it holds readme.md", "expected a folder of images with a folder for each class"]),
    ],
    ids=lambda mistake: mistake[0].__name__,
)
def test_folders(mistake: Mistake, tmp_path: Path) -> None:
    check(mistake, tmp_path)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder.os, "sysconf", {"SC_PAGE_SIZE": 10, "SC_PHYS_PAGES": 100}.__getitem__)
    image_folder(tmp_path)
    assert re.search(
        r"20 images of 10x12 pixels take 0\.0 GiB.*choose a smaller size, such as image_size=64", said(tmp_path)
    )


# npz -------------------------------------------------------------------------------------------------------------------


def ragged() -> np.ndarray:
    rows = np.empty(30, dtype=object)
    rows[:] = [list(range(k % 3 + 1)) for k in range(30)]
    return rows


def json_named_npz(root: Path) -> Path:
    return table(root / "set.npz", '{"x": [1, 2]}')


def npy(root: Path) -> Path:
    np.save(root / "x.npy", X)
    return root / "x.npy"


def cut(root: Path) -> Path:
    path = npz(root / "set.npz", x=X, y=Y)
    path.write_bytes(path.read_bytes()[:300])
    return path


def damaged(root: Path) -> Path:
    np.savez_compressed(root / "set.npz", x=X, y=Y)
    content = bytearray((root / "set.npz").read_bytes())
    content[200:260] = bytes(60)
    (root / "set.npz").write_bytes(content)
    return root / "set.npz"


def arrays(**values: np.ndarray) -> Callable[[Path], Path]:
    return lambda root: npz(root / "set.npz", **values)


WITH_NAN = np.where(np.arange(30 * 4).reshape(30, 4) == 41, np.nan, 1.0)

NPZ: dict[str, Mistake] = {
    "unknown names": (
        arrays(foo=X, labls=Y),
        ["foo [30, 6, 6], labls [30]", "x and y, images and labels", "labls -> labels"],
    ),
    "no labels": (arrays(x=X), ["holds no labels of the train part", "It holds: x", "x and y"]),
    "no inputs": (arrays(y=Y), ["holds no inputs of the train part"]),
    "no test labels": (arrays(x_train=X, y_train=Y, x_test=X), ["holds no labels of the test part"]),
    "two labels": (arrays(x=X, y=Y, target=Y), ["several arrays that could be the labels: y, target"]),
    "only a test": (arrays(x_test=X, y_test=Y), ["names that say nothing", "x_train"]),
    "lengths": (arrays(x=X, y=Y[:29]), ["30 inputs but 29 labels in the train part"]),
    "shapes of parts": (
        arrays(x_train=X, y_train=Y, x_test=X[:, :5], y_test=Y),
        ["must have one shape", "x_test has [30, 5, 6]"],
    ),
    "fractional labels": (arrays(x=X, y=Y + 0.5), ["array 'y' of set.npz is continuous: 0.5 in row 0", "pandas.cut"]),
    "one-hot": (arrays(x=X, y=np.eye(3)[Y]), ["shape [30, 3]", "y.argmax(axis=1)"]),
    "two-dimensional labels": (arrays(x=X, y=np.ones((30, 2))), ["one label for each sample, got shape [30, 2]"]),
    "object texts": (
        arrays(x=X, y=np.array(["a", "b", "c"], dtype=object)[Y]),
        ["array 'y'", "pickle can run any code", "labels.astype(str)"],
    ),
    "bytes": (arrays(x=X, y=np.array([b"a", b"b", b"c"])[Y]), ["whole numbers or texts, got |S1"]),
    "missing texts": (arrays(x=X, y=np.array(["a", "", "c"])[Y]), ["10 labels are missing, the first in row 1"]),
    "negative": (arrays(x=X, y=Y - 1), ["negative label -1", "classes are numbers from 0"]),
    "NaN labels": (
        arrays(x=X, y=np.where(Y == 1, np.nan, Y)),
        ["10 labels are missing or infinite, the first in row 1"],
    ),
    "one class": (arrays(x=X, y=Y * 0), ["one class only, 0; at least two"]),
    "identifiers": (arrays(x=X, y=np.arange(30)), ["30 different values in 30 samples", "not classes"]),
    "class in the test only": (
        arrays(x=X, y=Y, x_test=X, y_test=Y + 1),
        ["test part holds classes that the training part has not: [3]"],
    ),
    "ragged rows": (arrays(x=ragged(), y=Y), ["array 'x'", "Python objects", "np.array(rows, dtype=np.float32)"]),
    "texts as inputs": (arrays(x=np.array([["a"]] * 30), y=Y), ["array 'x'", "must hold numbers, got <U1"]),
    "one column": (arrays(x=np.arange(30.0), y=Y), ["got shape [30]", "x.reshape(-1, 1)"]),
    "videos": (arrays(x=X[:, None, None], y=Y), ["[n, h, w, c]", "got shape [30, 1, 1, 6, 6]"]),
    "NaN": (arrays(x=WITH_NAN, y=Y), ["NaN or infinity in 1 samples, the first is number 10", "np.nan_to_num"]),
    "ambiguous channels": (arrays(x=noise(30, 3, 3, 3), y=Y), ["channels could be first or last", "the other layout"]),
    "no channels": (arrays(x=noise(30, 5, 7, 6), y=Y), ["channels could be first or last"]),
    "damaged": (damaged, ["set.npz cannot be read as an .npz file", "write it again"]),
    "JSON": (json_named_npz, ["is not an .npz file, whatever its name says"]),
    "npy": (npy, ["single array", "np.savez('data.npz', x=x, y=y)"]),
    "cut": (cut, ["set.npz is truncated or corrupt"]),
}


@pytest.mark.parametrize("mistake", NPZ.values(), ids=NPZ)
def test_npz_files(mistake: Mistake, tmp_path: Path) -> None:
    check(mistake, tmp_path)


# Tables ----------------------------------------------------------------------------------------------------------------


def csv(text: str, name: str = "t.csv") -> Callable[[Path], Path]:
    return lambda root: table(root / name, text)


def lines(header: str, row: Callable[[int], str], count: int = 20) -> Callable[[Path], Path]:
    return csv("\n".join([header, *(row(k) for k in range(count))]) + "\n")


def structs(root: Path) -> Path:
    parquet.write_table(pa.table({"img": [{"bytes": b"x"}] * 8, "label": [0, 1] * 4}), root / "t.parquet")
    return root / "t.parquet"


def not_parquet(root: Path) -> Path:
    return table(root / "t.parquet", "a,b\n1,2\n")


def latin(root: Path) -> Path:
    (root / "t.csv").write_bytes("größe,label\n1,0\n2,1\n".encode("latin-1"))
    return root / "t.csv"


TABLES: dict[str, Mistake] = {
    "no header": (lines("5.1,3.5,0", lambda k: f"{k},{k},{k % 2}"), ["holds numbers (5.1, 3.5, 0", "x1,x2,label"]),
    "missing values": (
        lines("a,b,label", lambda k: f"{k},{'' if k == 3 else 1},{k % 2}"),
        ["missing values in the columns b (1)", "df.dropna()"],
    ),
    "NaN": (
        lines("a,b,label", lambda k: f"{k},{'inf' if k == 3 else 1.5},{k % 2}"),
        ["NaN or infinite, in the columns b, the first in row 3"],
    ),
    "missing marks": (lines("a,b,label", lambda k: f"{k},{'?' if k == 3 else 1},{k % 2}"), ["b (string, such as '?')"]),
    "text features": (
        lines("name,a,label", lambda k: f"n{k},{k},{k % 2}"),
        ["name (string, such as 'n0')", "pd.get_dummies(df, columns=['name'])", "--target name"],
    ),
    "dates": (lines("day,a,label", lambda k: f"2024-01-{k + 1:02},{k},{k % 2}"), ["day (date", "must be numbers"]),
    "continuous target": (
        lines("a,price", lambda k: f"{k},{k + 0.25}"),
        ["column 'price' of t.csv is continuous: 0.25 in row 0", "pandas.cut"],
    ),
    "whole continuous target": (
        lines("a,price", lambda k: f"{k % 7},{1000 + 3 * k}", 100),
        ["100 different values in 100 samples", "choose another target"],
    ),
    "missing target": (
        lines("a,label", lambda k: f"{k},{'' if k == 3 else 'xy'[k % 2]}"),
        ["1 labels are missing, the first in row 3"],
    ),
    "negative target": (lines("a,label", lambda k: f"{k},{k % 2 - 1}"), ["negative label -1"]),
    "one class": (lines("a,label", lambda k: f"{k},x"), ["one class only, x"]),
    "two targets": (lines("a,label,class", lambda k: f"{k},{k % 2},{k % 2}"), ["label, class", "--target label"]),
    "only a target": (lines("label", lambda k: f"{k % 2}"), ["no column but 'label'"]),
    "an index": (lines(",a,label", lambda k: f"{k},{k},{k % 2}"), ["column 1", "has no name", "index=False"]),
    "an index of pandas": (
        lines("Unnamed: 0,a,label", lambda k: f"{7 * k % 20},{k},{k % 2}"),
        ["'Unnamed: 0'", "index of pandas, no feature", "index=False"],
    ),
    "a name twice": (lines("a,a,label", lambda k: f"{k},{k},{k % 2}"), ["several columns called a"]),
    "header only": (csv("a,label\n"), ["holds no row besides its header"]),
    "empty": (csv(""), ["t.csv is empty"]),
    "rows of other lengths": (csv("a,label\n1,0\n2,1,3\n"), ["cannot be read as a table", "Expected 2 columns, got 3"]),
    "latin": (latin, ["cannot be read as a table", "UTF-8"]),
    "JSON": (csv('[{"a": 1}]', "t.json"), ["JSON is not read", "to_csv('data.csv', index=False)"]),
    "JSON of another name": (csv('{"a": 1}', "t.data"), ["JSON is not read"]),
    "spreadsheet": (csv("PK\x03\x04", "t.xlsx"), ["it is a spreadsheet; save it as CSV"]),
    "pickle": (csv("x", "t.pkl"), ["a pickle can run any code"]),
    "another ending": (csv("a,label\n1,0\n", "t.dat"), ["the ending .dat", "a CSV or Parquet table"]),
    "structs": (structs, ["img (struct"]),
    "not Parquet": (not_parquet, ["cannot be read as a table"]),
    "one IDX file": (lambda root: idx(root / "train-images-idx3-ubyte", X), ["one IDX file of a set; name the folder"]),
}


@pytest.mark.parametrize("mistake", TABLES.values(), ids=TABLES)
def test_tables(mistake: Mistake, tmp_path: Path) -> None:
    check(mistake, tmp_path)


def test_a_wrong_target_gets_the_right_one(tmp_path: Path) -> None:
    message = said(flowers(tmp_path / "t.csv"), target="specis")
    assert "no column 'specis' (did you mean 'species'?); it has: width, species, year" in message
