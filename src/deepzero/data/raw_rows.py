"""Rows of tables as people have them: files, columns by name, arrays; and columns as numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from torch import Tensor

from deepzero.data.columns import read_columns
from deepzero.errors import InvalidInputError
from deepzero.text import nearest

Array = npt.NDArray[Any]


def read_rows(
    raw: Any, *, count: int, column_names: tuple[str, ...], target: str | None
) -> Float64[Tensor, "b {count}"]:
    """Rows of ``count`` numbers; see :class:`deepzero.data.Preprocessing`.

    Columns are found by their names, in any order; the target and others that the network does not know are left out.

    Raises:
        InvalidInputError: a column is missing or not of finite numbers, or an array has another shape.
        DataNotFoundError: there is no such file.
    """
    if isinstance(raw, (str, os.PathLike)):
        raw = read_columns(Path(raw).expanduser())
    elif isinstance(raw, Sequence) and raw and all(isinstance(row, Mapping) for row in raw):
        raw = _columns_of(raw)
    names = _names(raw)
    if names is None:
        return _of_array(raw, count, column_names)
    if not column_names:
        raise InvalidInputError(
            f"the columns that the network was trained on have no names; give an array of shape [b, {count}], "
            f"got columns {', '.join(names[:5])}, ..."
        )
    require_columns(names, column_names, ignored=target)
    numbers = [numeric(values_of(raw[name]), name) for name in column_names]
    if len({len(column) for column in numbers}) > 1:
        lengths = ", ".join(f"{name}: {len(column)}" for name, column in zip(column_names, numbers, strict=True))
        raise InvalidInputError(f"all columns must have the same length, got {lengths}")
    return torch.from_numpy(np.stack(numbers, axis=1))


def require_columns(names: Sequence[str], needed: Sequence[str], *, ignored: str | None = None) -> None:
    """Raise :class:`~deepzero.errors.InvalidInputError` unless all that is needed is among ``names``."""
    missing = [name for name in needed if name not in names]
    if not missing:
        return
    others = [name for name in names if name not in needed and name != ignored]
    guess = nearest(missing[0], others)
    raise InvalidInputError(
        f"there is no column {', '.join(map(repr, missing[:5]))}{f' (is it {guess!r}?)' if guess else ''}; "
        f"expected {', '.join(needed)}; got {', '.join(names)}"
    )


def values_of(column: Any) -> Array:
    """The values of a column as a NumPy array of a plain type; of type ``object`` if they have none."""
    if hasattr(column, "to_numpy"):  # pandas, polars, pyarrow
        return np.asarray(column.to_numpy())
    if isinstance(column, Tensor):
        return column.detach().cpu().numpy()
    return np.atleast_1d(np.asarray(column))


def numeric(values: Array, name: str) -> npt.NDArray[np.float64]:
    """A column as float64.

    Raises:
        InvalidInputError: it is not a column of finite numbers.
    """
    if values.dtype == object and all(value is None or isinstance(value, (bool, int, float)) for value in values):
        values = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        some = repr(values.reshape(-1)[0].item() if values.dtype.kind == "U" else values.reshape(-1)[0])
        raise InvalidInputError(f"column {name!r} must hold numbers, got {some}")
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise InvalidInputError(
            f"column {name!r} has {len(bad)} missing or infinite values, the first in row {bad[0]}; "
            "fill them in as you did for the training data"
        )
    return numbers


def _names(raw: Any) -> list[str] | None:
    """Names of columns, None if there are none."""
    for attribute in ("column_names", "columns"):
        if hasattr(raw, attribute):
            return list(map(str, getattr(raw, attribute)))
    return list(map(str, raw)) if isinstance(raw, Mapping) else None


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = list(rows[0])
    odd = next((number for number, row in enumerate(rows) if set(row) != set(names)), None)
    if odd is not None:
        raise InvalidInputError(f"all rows must have the same columns, but row {odd} has {', '.join(rows[odd])}")
    return {name: [row[name] for row in rows] for name in names}


def _of_array(raw: Any, count: int, column_names: tuple[str, ...]) -> Float64[Tensor, "b {count}"]:
    array = values_of(raw)
    if array.ndim != 2 or array.shape[1] != count or array.dtype.kind not in "biuf":
        order = f" in the order {', '.join(column_names)}" if column_names else ""
        hint = "; for a single row, x.reshape(1, -1)" if array.shape == (count,) else ""
        raise InvalidInputError(
            "rows must be given as the path of a CSV or Parquet file, columns by name, or an array of numbers of shape "
            f"[b, {count}]{order}; got {type(raw).__name__} of {array.dtype} and shape {list(array.shape)}{hint}"
        )
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InvalidInputError("rows must be finite, got NaN or infinity; fill them in as for the training data")
    return torch.from_numpy(numbers)
