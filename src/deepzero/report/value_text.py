"""Values and tables as text: for a page, for a terminal, and for documents in Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deepzero.report.figures import Table

if TYPE_CHECKING:
    import rich.table

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
    """For each column: it holds numbers (with or without unit and spread) and nothing else.

    >>> rows = [("cge", "51.00 ± 1.41 (2)", "3.1 ms"), ("rge", "—", "4 days")]
    >>> numeric_columns(Table(title="", columns=("method", "accuracy", "time"), rows=rows))
    [False, True, True]
    """
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    return [_numeric([cell for cell in column if cell not in NOTHING]) for column in columns]


def rich_table(table: Table) -> rich.table.Table:
    """The table for ``rich.console.Console.print``; its texts are shown as they are, markup is not interpreted."""
    import rich.table  # noqa: PLC0415 - only for a terminal
    from rich.text import Text  # noqa: PLC0415

    drawn = rich.table.Table(
        title=Text(table.title), caption=Text(table.note) if table.note else None, title_justify="left"
    )
    drawn.caption_justify = "left"
    for name, numeric in zip(table.columns, numeric_columns(table), strict=True):
        drawn.add_column(Text(name), justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def markdown(table: Table) -> str:
    """The table as GitHub and MyST render it: title in bold, numbers to the right, the note below.

    >>> print(markdown(Table(title="Speed", columns=("method", "seconds"), rows=[("cge|2", "1.5")])))
    **Speed**
    <BLANKLINE>
    | method | seconds |
    |---|---:|
    | cge\\|2 | 1.5 |
    <BLANKLINE>
    """
    rules = ["---:" if numeric else "---" for numeric in numeric_columns(table)]
    lines = [_line(table.columns), f"|{'|'.join(rules)}|", *(_line(row) for row in table.rows)]
    title = f"**{_plain(table.title)}**\n\n" if table.title else ""
    note = f"\n{_plain(table.note)}\n" if table.note else ""
    return title + "\n".join(lines) + "\n" + note


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """The text on one line, without a meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<|$])", r"\\\1", " ".join(text.split()))


def _numeric(cells: list[str]) -> bool:
    return bool(cells) and all(NUMERIC.fullmatch(cell.strip()) for cell in cells)
