"""NumPy's ``.npz`` files: inputs and labels under the names that people give them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Real
from torch import Tensor

from deepzero.data.data_files import require_file, require_memory
from deepzero.data.own_data import TEST, TRAIN, VALIDATION, Contents, Samples
from deepzero.errors import InvalidInputError
from deepzero.text import nearest, one_line

INPUTS = ("x", "images", "image", "inputs", "features", "data", "arr_0")
LABELS = ("y", "labels", "label", "targets", "target", "classes", "arr_1")
PARTS = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
CLASS_NAMES = ("class_names", "target_names", "label_names")
COLUMN_NAMES = ("column_names", "feature_names")
KNOWN = (
    "x and y, images and labels, features and target, data and target; with a test set x_train, y_train, x_test and "
    "y_test, or train_images, train_labels, test_images and test_labels"
)
FEW_CHANNELS = 4
ENDING = ".npy"
"""Of an array in an archive."""

Array = npt.NDArray[Any]


def read_npz(path: Path) -> Contents:
    """Inputs and labels of an ``.npz`` file.

    Inputs are images (``[n, h, w]``, or ``[n, h, w, c]`` or ``[n, c, h, w]``) or rows of a table ``[n, c]``; labels are
    whole numbers or texts. Upper and lower case are the same; ``train``, ``val`` and ``test`` may stand before or
    after; ``class_names`` and ``feature_names`` may be there too. Nothing that is pickled is read.

    Raises:
        InvalidInputError: it is damaged, arrays have other names, are pickled, or of shapes that do not fit.
    """
    require_file(path)
    try:
        names = _announced(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _array(archive, name, path) for name in names}
    except InvalidInputError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy, of many kinds
        raise InvalidInputError(f"{path} cannot be read as an .npz file ({one_line(error)}); write it again") from error
    roles = {name: _role(name) for name in arrays}
    parts = {part: _pair(part, roles, path) for part in dict.fromkeys(role[0] for role in roles.values() if role)}
    if TRAIN not in parts:
        raise _unknown(path, arrays)
    samples, fields, notes = _samples(parts, arrays, path)
    unused = [name for name, role in roles.items() if role is None and name.lower() not in CLASS_NAMES + COLUMN_NAMES]
    if unused:
        notes.append(f"{path.name}: not used: {', '.join(unused)}")
    return Contents(
        parts=samples,
        labels=f"array {parts[TRAIN][1]!r} of {path.name}",
        class_names=_class_names(arrays, samples),
        fields=fields,
        notes=tuple(notes),
    )


def read_inputs(path: Path) -> Array:
    """The inputs in an ``.npy`` file, or in an ``.npz`` file under a name that :func:`read_npz` understands.

    Of several parts, those of the test set.

    Raises:
        InvalidInputError: the file is damaged, or no array has such a name.
    """
    require_file(path)
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                _require_announced(path, file, path.stat().st_size)
            return np.asarray(np.load(path, allow_pickle=False))
        known = _announced(path)
        with np.load(path, allow_pickle=False) as archive:
            roles = {name: _role(name) for name in known}
            names = [
                name for part in (TEST, TRAIN, VALIDATION) for name, role in roles.items() if role == (part, False)
            ]
            if not names:
                raise InvalidInputError(
                    f"{path} holds {', '.join(archive.files)}; the array to predict on must be called x"
                )
            return _array(archive, names[0], path)
    except InvalidInputError:
        raise
    except Exception as error:  # of zipfile, zlib and NumPy, of many kinds
        raise InvalidInputError(
            f"{path} cannot be read ({one_line(error)}); write an array of numbers again: np.save('x.npy', x)"
        ) from error


def _announced(path: Path) -> list[str]:
    """Names of the arrays in an archive, after a look at their headers: what they announce is there, and fits."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(ENDING)]
        require_memory(path, sum(member.file_size for member in members))
        for member in members:
            with archive.open(member) as file:
                _require_announced(path, file, member.file_size)
    return [member.filename.removesuffix(ENDING) for member in members]


def _require_announced(path: Path, file: IO[bytes], size: int) -> None:
    """Raise unless an array in NumPy's format has the size that its header announces.

    Raises:
        ValueError: it has another, or no such header.
        InvalidInputError: it does not fit into memory.
    """
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    announced = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        return  # refused when it is read, with advice
    if announced != size:
        raise ValueError(f"its header says {announced:,} bytes, but it has {size:,}")
    require_memory(path, announced)


def _array(archive: Any, name: str, path: Path) -> Array:
    try:
        array: Array = archive[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InvalidInputError(
            f"array {name!r} of {path} holds Python objects; they are pickled, and a pickle can run any code, so it is "
            "never read. Save plain numbers or texts: np.array(rows, dtype=np.float32) (all of the same length), "
            "labels.astype(str)"
        ) from error
    return array


def _role(name: str) -> tuple[str, bool] | None:
    """The part that an array belongs to, and True if it holds labels; None if its name says neither."""
    words = name.lower().split("_")
    part = next((PARTS[word] for word in words if word in PARTS), TRAIN)
    what = "_".join(word for word in words if word not in PARTS)
    if what in INPUTS + LABELS:
        return part, what in LABELS
    joined = {
        form: (part, letter == "y")
        for word, part in PARTS.items()
        for letter in "xy"
        for form in (letter + word, word + letter)
    }
    return joined.get(name.lower())


def _pair(part: str, roles: dict[str, tuple[str, bool] | None], path: Path) -> tuple[str, str]:
    """Names of the inputs and of the labels of a part."""
    found = []
    for is_label, what in ((False, "inputs"), (True, "labels")):
        names = [name for name, role in roles.items() if role == (part, is_label)]
        if len(names) != 1:
            problem = f"several arrays that could be the {what}: {', '.join(names)}" if names else f"no {what}"
            raise InvalidInputError(
                f"{path} holds {problem} of the {part} part. It holds: {', '.join(roles)}. Names that are understood: "
                f"{KNOWN}"
            )
        found += names
    return found[0], found[1]


def _unknown(path: Path, arrays: dict[str, Array]) -> InvalidInputError:
    nearest_names = {name: nearest(name.lower(), INPUTS + LABELS) for name in arrays}
    guesses = [f"{name} -> {guess}" for name, guess in nearest_names.items() if guess]
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
    return InvalidInputError(
        f"the arrays in {path} have names that say nothing: {shapes}. Names that are understood: {KNOWN}"
        + (f". Did you mean: {', '.join(guesses)}?" if guesses else "")
    )


def _samples(
    pairs: dict[str, tuple[str, str]], arrays: dict[str, Array], path: Path
) -> tuple[dict[str, Samples], dict[str, Any], list[str]]:
    """The parts; the fields of the data set; what was decided."""
    order = [part for part in (TRAIN, VALIDATION, TEST) if part in pairs]
    raw = {part: arrays[pairs[part][0]] for part in order}
    for part, array in raw.items():
        _require_inputs(array, pairs[part][0], path)
        if array.shape[1:] != raw[TRAIN].shape[1:]:
            raise InvalidInputError(
                f"{path}: the inputs of all parts must have one shape, but {pairs[part][0]} has {list(array.shape)} "
                f"and {pairs[TRAIN][0]} has {list(raw[TRAIN].shape)}"
            )
    notes: list[str] = []
    fields: dict[str, Any] = {"scale": 1.0}
    if raw[TRAIN].ndim == 2:
        inputs = {part: torch.from_numpy(array.astype(np.float64)) for part, array in raw.items()}
        fields |= {"column_names": _texts(arrays, COLUMN_NAMES)}
    else:
        channels = {part: _channels_first(array, pairs[part][0], path) for part, array in raw.items()}
        inputs, fields = _in_units(channels, path.name, notes)
    samples = {part: Samples(inputs=inputs[part], labels=arrays[pairs[part][1]]) for part in order}
    return samples, fields, notes


def _require_inputs(array: Array, name: str, path: Path) -> None:
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(f"array {name!r} of {path} must hold numbers, got {array.dtype}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise InvalidInputError(
            f"array {name!r} of {path} must hold images ([n, h, w], [n, h, w, c] or [n, c, h, w]) or rows ([n, "
            f"columns]), got shape {list(array.shape)}"
            + ("; for a single column, x.reshape(-1, 1)" if array.ndim == 1 else "")
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
        raise InvalidInputError(
            f"array {name!r} of {path} holds NaN or infinity in {len(rows)} samples, the first is number {rows[0]}; "
            "fill them in (np.nan_to_num, or the column's mean), or take these samples away"
        )


def _channels_first(array: Array, name: str, path: Path) -> Array:
    """Images as ``[n, c, h, w]``: few channels, else square images, tell where the channels are."""
    if array.ndim == 3:
        return array[:, None]
    _, second, third, last = array.shape
    first, final = second <= FEW_CHANNELS, last <= FEW_CHANNELS
    if first == final:
        first, final = third == last, second == third
    if first == final:
        raise InvalidInputError(
            f"array {name!r} of {path} has shape {list(array.shape)}, in which channels could be first or last; save "
            "it in the other layout or as image files, so that only one of the two is 1 to 4 channels"
        )
    return array if first else array.transpose(0, 3, 1, 2)


def _in_units(arrays: dict[str, Array], name: str, notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Images as uint8 or float32, and their unit."""
    low, high = (
        float(extreme(array.min() if extreme is min else array.max() for array in arrays.values()))
        for extreme in (min, max)
    )
    kinds = {array.dtype.kind for array in arrays.values()}
    if kinds <= {"u", "i", "b"} and low >= 0 and high <= 255:
        scale = 255.0 if high > 16 else max(high, 1.0)
        if scale < 255:
            notes.append(f"{name}: no pixel is above {scale:g}, which is taken for white")
        return {part: _tensor(array, np.uint8) for part, array in arrays.items()}, {"scale": scale}
    fractions = kinds == {"f"} and low >= 0 and high <= 1
    if not fractions:
        notes.append(f"{name}: pixels are numbers from {low:g} to {high:g}; predictions need arrays in the same unit")
    fields = {"scale": 1.0, "fractions": fractions}
    return {part: _tensor(array, np.float32) for part, array in arrays.items()}, fields


def _tensor(array: Array, dtype: type[np.generic]) -> Real[Tensor, "n c h w"]:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def _texts(arrays: dict[str, Array], names: tuple[str, ...]) -> tuple[str, ...]:
    found = [array for name, array in arrays.items() if name.lower() in names and array.dtype.kind == "U"]
    return tuple(map(str, found[0].reshape(-1))) if found else ()


def _class_names(arrays: dict[str, Array], samples: dict[str, Samples]) -> tuple[str, ...] | None:
    """Names given in the file, if the labels are numbers."""
    names = _texts(arrays, CLASS_NAMES)
    numbers = all(part.labels.dtype.kind in "iu" and part.labels.ndim == 1 for part in samples.values())
    return names if names and numbers else None
