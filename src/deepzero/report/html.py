"""Documents as one HTML page that needs nothing else: no script, no font, no file, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from deepzero import __version__
from deepzero.report.figures import Document, Figure, HeatMap, Picture, Series, Table
from deepzero.report.maps import draw_map
from deepzero.report.svg import NARROW, draw
from deepzero.report.value_text import MISSING, flat, numeric_columns, shown

LONG = 60
"""Letters from which a list of values is folded away."""

ROOMS = range(20, 77, 4)
"""Widths, in letters' heights, below which a table is laid out as one block a row: what does not fit is never cut."""

WORD, LETTER, PADDING = 24, 0.53, 1.1
"""Letters of a cell that stay on a line; height of a letter over its width; space between columns."""


def page(documents: Sequence[Document], *, title: str) -> str:
    """Documents below each other as the text of an HTML file.

    Curves are inline SVG, each with its numbers in a table that can be opened; facts and single measurements can be
    opened too. All texts are escaped. The same documents give the same bytes.

    Args:
        documents: in their order.
        title: of the page.

    >>> text = page([Document(title="Digits", headline={"test accuracy": "97.1%"})], title="Runs <1>")
    >>> "<h1>Runs &lt;1&gt;</h1>" in text, "97.1%" in text, "<script" in text
    (True, True, False)
    """
    return framed(content(documents, title=title), title=title)


def framed(body: str, *, title: str, head: str = "") -> str:
    """An HTML file around what is to be seen.

    Args:
        body: markup.
        title: of the page.
        head: further markup of the head.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n{head}'
        f"<style>\n{_style()}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def content(documents: Sequence[Document], *, title: str) -> str:
    """Documents below each other, with a heading and a table of contents, as markup."""
    contents = _contents(documents) if len(documents) > 1 else ""
    sections = "".join(_section(document, number, title) for number, document in enumerate(documents, 1))
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n</header>\n{contents}<main>\n{sections}</main>\n"
        f"<footer>Made by deepzero {escape(__version__)}.</footer>\n"
    )


def _style() -> str:
    """The style sheet: that of the page, and that of tables as blocks, for every width below which a table is one."""
    sheets = files("deepzero.report")
    plain, blocks = (sheets.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "blocks.css"))
    narrow = [
        f"@container (max-width: {room}rem) {{\n{blocks.replace('.blocks', f'.blocks-{room}')}}}\n" for room in ROOMS
    ]
    return plain + blocks.replace(".blocks", ".blocks-always") + "".join(narrow)


def _contents(documents: Sequence[Document]) -> str:
    entries = "".join(f'<li><a href="#part-{n}">{escape(d.title)}</a></li>\n' for n, d in enumerate(documents, 1))
    return f'<nav aria-label="Contents">\n<ol>\n{entries}</ol>\n</nav>\n'


def _section(document: Document, number: int, page_title: str) -> str:
    hidden = ' class="hidden"' if document.title == page_title else ""
    figures = "".join(_figure(figure, f"part-{number}-{i}") for i, figure in enumerate(document.figures, 1))
    figures += "".join(_map(shown, f"part-{number}-map-{i}") for i, shown in enumerate(document.maps, 1))
    facts = {name: value for name, value in document.facts.items() if isinstance(value, Mapping)}
    single = {name: value for name, value in document.facts.items() if name not in facts}
    return (
        f'<section id="part-{number}" aria-labelledby="part-{number}-title">\n'
        f'<h2 id="part-{number}-title"{hidden}>{escape(document.title)}</h2>\n'
        + _caption(document.caption)
        + _headline(document.headline)
        + "".join(_table(table) for table in document.tables)
        + (f'<div class="figures">\n{figures}</div>\n' if figures else "")
        + "".join(_picture(picture) for picture in document.pictures)
        + "".join(_facts(name, value) for name, value in [("How it was run", single), *facts.items()] if value)
        + _cells(document.cells)
        + "</section>\n"
    )


def _caption(text: str) -> str:
    parts = [part for part in text.split("\n\n") if part.strip()]
    return "".join(
        f"<pre><code>{escape(part.strip())}</code></pre>\n" if part[0] == " " else f"<p>{escape(part.strip())}</p>\n"
        for part in (part.strip("\n") for part in parts)
    )


def _headline(values: Mapping[str, str]) -> str:
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>\n" for name, text in values.items())
    return f'<dl class="headline">\n{tiles}</dl>\n' if tiles else ""


def _table(table: Table) -> str:
    numeric = numeric_columns(table)
    bars = [name in table.bars for name in table.columns]
    heads = "".join(
        f'<th scope="col"{_class(is_number)}>{escape(name)}</th>'
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    room = _room(table)
    names = table.columns if room else [""] * len(table.columns)
    rows = "".join(
        "<tr>" + "".join(_cell(*cell) for cell in zip(row, names, numeric, bars, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    return f"{_table_of(table.title, heads, rows, room)}{_note(table.note)}"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n' if text else ""


def _room(table: Table) -> str:
    """The class of a table that must become blocks where it has less room than it needs; empty if it fits anywhere."""
    columns = [[*name.split(), *(row[i] for row in table.rows)] for i, name in enumerate(table.columns)]
    needed = sum(max((min(len(text), WORD) for text in column), default=0) * LETTER + PADDING for column in columns)
    needed += sum(7 for name in table.columns if name in table.bars)
    fitting = next((room for room in ROOMS if needed <= room), None)
    return "" if fitting == ROOMS[0] and len(columns) < 4 else f"blocks-{fitting or 'always'}"


def _table_of(title: str, heads: str, rows: str, room: str = "") -> str:
    """A table that becomes blocks, or else scrolls by itself, where it is wider than the page."""
    kind = f' class="{room}"' if room else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(title)}">\n<table{kind}>\n'
        f"<caption>{escape(title)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )


def _cell(text: str, name: str, is_number: bool, has_bar: bool) -> str:
    label = f' data-name="{escape(name)}"' if name else ""
    if not has_bar:
        return f"<td{_class(is_number)}{label}>{escape(text)}</td>"
    return f'<td class="number bar"{label}{_bar(text)}>{escape(text)}</td>'


def _bar(text: str) -> str:
    try:
        percent = min(max(float(text.strip().removesuffix("%").replace(",", "")), 0.0), 100.0)
    except ValueError:
        return ""
    return f' style="--part: {percent:g}%"'


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _figure(figure: Figure, name: str) -> str:
    return f"<figure>\n{draw(figure, name=name, sheet=NARROW)}{_numbers(figure)}</figure>\n"


def _map(shown: HeatMap, name: str) -> str:
    columns = [shown.y_label, shown.x_label, shown.value_label]
    points = [
        [y, x, v] for y, row in zip(shown.y, shown.values, strict=True) for x, v in zip(shown.x, row, strict=True)
    ]
    numbers = _records("Numbers", columns, points, f"{shown.title}: numbers") if points else ""
    return f"<figure>\n{draw_map(shown, name=name)}{_note(shown.note)}{numbers}</figure>\n"


def _picture(picture: Picture) -> str:
    title = escape(picture.title)
    return (
        f'<figure class="picture">\n<img src="{escape(picture.source)}" alt="{title}">\n'
        f"<figcaption>{title}</figcaption>\n</figure>\n"
    )


def _numbers(figure: Figure) -> str:
    columns = ["curve", figure.x_label, figure.y_label]
    if any(series.spread is not None for series in figure.series):
        columns.append("±")
    points = [
        [series.name, x, y, s][: len(columns)]
        for series in figure.series
        for x, y, s in zip(series.x, series.y, _spread(series), strict=True)
    ]
    return _records("Numbers", columns, points, f"{figure.title}: numbers") if points else ""


def _spread(series: Series) -> Sequence[float | None]:
    return series.spread if series.spread is not None else [None] * len(series.x)


def _cells(cells: Sequence[Mapping[str, Any]]) -> str:
    """One measurement below the other: side by side, their curves would make a table of a thousand columns."""
    shown = "".join(_facts(_label(cell, number), cell) for number, cell in enumerate(cells, 1))
    summary = f"<summary>Single measurements ({len(cells)})</summary>"
    return f'<details class="cells">\n{summary}\n{shown}</details>\n' if shown else ""


def _label(cell: Mapping[str, Any], number: int) -> str:
    labels = cell.get("labels")
    parts = [f"{name} {shown(value)}" for name, value in labels.items()] if isinstance(labels, Mapping) else []
    return ", ".join(parts) or f"measurement {number}"


def _records(summary: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str) -> str:
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = "".join("<tr>" + "".join(_value(value) for value in row) + "</tr>\n" for row in rows)
    return f"<details>\n<summary>{escape(summary)}</summary>\n{_table_of(title, heads, lines)}</details>\n"


def _value(value: Any) -> str:
    text, is_number = shown(value), isinstance(value, int | float) and not isinstance(value, bool)
    if len(text) > LONG and isinstance(value, list | tuple):
        return f"<td><details><summary>{len(value)} values</summary>{escape(text)}</details></td>"
    return f"<td{_class(is_number or text == MISSING)}>{escape(text)}</td>"


def _facts(name: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>{_value(value)}</tr>\n' for key, value in flat(values).items()
    )
    heads = '<th scope="col">name</th><th scope="col">value</th>'
    title = name[:1].upper() + name[1:]
    return f'<details class="facts">\n<summary>{escape(title)}</summary>\n{_table_of(title, heads, rows)}</details>\n'
