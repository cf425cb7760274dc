"""Tables as text: for a terminal, and for documents in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

import rich.table
from rich.text import Text

from deepzero.report.figures import Table
from deepzero.report.value_text import numeric_columns


def rich_table(table: Table) -> rich.table.Table:
    """The table for ``rich.console.Console.print``; its texts are shown as they are, markup is not interpreted."""
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
