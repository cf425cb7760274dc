"""Values as text: numbers, nested settings, and which columns of a table hold numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepzero.report.figures import Table

MISSING = "—"
NOTHING = ("", "-", "\u2013", MISSING)

_NUMBER = r"[-+\u2212]?(\d[\d,]*(\.\d*)?|\.\d+)(e[-+]?\d+)?"
_UNIT = r"( ?[%\u00d7x]| [a-zA-Zµ/]{1,10})?"
NUMERIC = re.compile(rf"[~≈<>≤≥]? ?{_NUMBER}{_UNIT}( ?± ?{_NUMBER}{_UNIT})?( \(\d+\))?")


def shown(value: Any) -> str:
    """A JSON-able value as a person reads it.

    >>> [shown(value) for value in (37646, 0.1234567891, 5e-3, True, None, (1, 2), "cge", 2.0)]
    ['37,646', '0.123457', '0.005', 'yes', '—', '1, 2', 'cge', '2']
    """
    if value is None or value in ("", [], ()):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(entry) for entry in value)
    return str(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    >>> flat({"seed": 0, "data": {"name": "digits", "options": {}}})
    {'seed': 0, 'data.name': 'digits', 'data.options': None}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = None if isinstance(value, Mapping) else value
    return leaves


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers (with or without unit and spread) and nothing else.

    >>> rows = [("cge", "51.00 ± 1.41 (2)", "3.1 ms"), ("rge", "—", "4 days")]
    >>> numeric_columns(Table(title="", columns=("method", "accuracy", "time"), rows=rows))
    [False, True, True]
    """
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    return [_numeric([cell for cell in column if cell not in NOTHING]) for column in columns]


def _numeric(cells: list[str]) -> bool:
    return bool(cells) and all(NUMERIC.fullmatch(cell.strip()) for cell in cells)
