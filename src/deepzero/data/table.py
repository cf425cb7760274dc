"""Tables in CSV and Parquet files: numbers as features, one column as the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepzero.data.columns import is_number, read_columns
from deepzero.data.own_data import TRAIN, Contents, Samples
from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean

TARGETS = ("label", "target", "class", "y")
INDEX_NAMES = ("Unnamed: 0", "__index_level_0__")
"""Names of pandas for the row number when it writes or reads it as a column."""


def read_table(path: Path, target: str | None = None) -> Contents:
    """Features and target of a CSV file with a header, or of a Parquet file.

    Args:
        path: of the file.
        target: the column with the classes; by default the one called label, target, class or y (in upper or lower
            case), else the last one. All other columns are features.

    Raises:
        InvalidInputError: there is no such column, a value is missing, or a feature is not a number.
    """
    table = read_columns(path)
    names = list(table.column_names)
    if index := [name for name in names if name in INDEX_NAMES]:
        raise InvalidInputError(
            f"column {index[0]!r} of {path} is the index of pandas, no feature; write the file again with "
            "df.to_csv(path, index=False) or df.to_parquet(path, index=False)"
        )
    chosen, note = _target(names, target, path)
    features = [name for name in names if name != chosen]
    if not features:
        raise InvalidInputError(f"{path} has no column but {chosen!r}, the target; at least one feature is needed")
    _require_complete(table, path)
    _require_numbers(table, features, path)
    columns = [np.asarray(table[name].to_numpy(), dtype=np.float64) for name in features]
    rows = np.stack(columns, axis=1)
    _require_finite(rows, features, path)
    notes = [note] if note else []
    counting = [name for name, column in zip(features, columns, strict=True) if _counts(column)]
    if counting:
        notes.append(
            f"{path.name}: column {', '.join(counting)} counts the rows; if it is an identifier, take it away, since "
            "it says nothing about other rows"
        )
    return Contents(
        parts={TRAIN: Samples(inputs=torch.from_numpy(rows), labels=_labels(table[chosen], chosen, path))},
        labels=f"column {chosen!r} of {path.name}",
        fields={"scale": 1.0, "column_names": tuple(features), "target": chosen},
        notes=tuple(notes),
    )


def _target(names: list[str], target: str | None, path: Path) -> tuple[str, str | None]:
    """The target's name, and how it was chosen if nobody said so."""
    if target is not None:
        if target not in names:
            raise InvalidInputError(
                f"{path} has no column {target!r}{did_you_mean(target, names, shown=repr)}; it has: {', '.join(names)}"
            )
        return target, None
    usual = [name for name in names if name.lower() in TARGETS]
    if len(usual) > 1:
        raise InvalidInputError(
            f"{path} has several columns that could be the target: {', '.join(usual)}; choose one with "
            f"target={usual[0]!r} (--target {usual[0]})"
        )
    if usual:
        return usual[0], f"{path.name}: the target is column {usual[0]!r}, by its name"
    return names[-1], (
        f"{path.name}: the target is the last column, {names[-1]!r}, since none is called {', '.join(TARGETS)}; "
        "choose another with target=... (--target NAME)"
    )


def _require_complete(table: Any, path: Path) -> None:
    missing = {name: table[name].null_count for name in table.column_names if table[name].null_count}
    if missing:
        listed = ", ".join(f"{name} ({count})" for name, count in list(missing.items())[:10])
        raise InvalidInputError(
            f"{path} has missing values in the columns {listed}; take these rows away (df.dropna()) or fill them in "
            "(df.fillna(df.mean(numeric_only=True))), and write the file again"
        )


def _require_numbers(table: Any, features: list[str], path: Path) -> None:
    from pyarrow import types  # noqa: PLC0415 - slow to import

    def numeric(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    others = {name: table.schema.field(name).type for name in features if not numeric(table.schema.field(name).type)}
    if others:
        listed = ", ".join(f"{name} ({kind}, such as {_odd(table[name])!r:.40})" for name, kind in others.items())
        first = next(iter(others))
        raise InvalidInputError(
            f"features must be numbers, but {path} also has: {listed}. Make numbers of them "
            f"(pd.get_dummies(df, columns=[{first!r}])), take them away (df.drop(columns=[{first!r}])), or choose one "
            f"as the target (target={first!r}, --target {first})"
        )


def _odd(column: Any) -> Any:
    """A value that is no number, the first one otherwise."""
    values = column.to_pylist()
    return next((value for value in values if not is_number(str(value))), values[0])


def _require_finite(rows: Any, features: list[str], path: Path) -> None:
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        named = ", ".join(dict.fromkeys(features[column] for _, column in bad[:1000]))
        raise InvalidInputError(
            f"{path} has {len(bad)} values that are NaN or infinite, in the columns {named}, the first in row "
            f"{bad[0][0]}; take these rows away (df.dropna()) or fill them in, and write the file again"
        )


def _labels(column: Any, name: str, path: Path) -> Any:
    from pyarrow import types  # noqa: PLC0415

    kind = column.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.array(column.to_pylist())
    raise InvalidInputError(f"column {name!r} of {path}, the target, must hold whole numbers or texts, got {kind}")


def _counts(column: Any) -> bool:
    """True if a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    return len(column) > 2 and column[0] in (0, 1) and bool((np.diff(column) == 1).all())
