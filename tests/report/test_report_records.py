"""Results as data, and tables as text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from deepzero.errors import InvalidInputError
from deepzero.report import Document, Figure, HeatMap, Picture, Series, Span, Table, markdown, rich_table
from deepzero.report.value_text import numeric_columns

TABLE = Table(title="Speed", columns=["method", "seconds"], rows=[["cge", "1.5"], ["rge [b]x[/b]", "—"]], note="Cold.")
MAP = HeatMap(
    title="m",
    x_label="epoch",
    y_label="layer",
    value_label="%",
    x=[1, 2],
    y=["a", "b"],
    values=[[1, None], [2, 3.5]],
    limits=[0, 5],
    marks={"here": [1, 0]},
)
DOCUMENT = Document(
    title="All",
    caption="c",
    headline={"a": "b"},
    tables=[replace(TABLE, bars=["seconds"]), Table(title="", columns=["x"], rows=[], bars=["x"])],
    figures=[
        Figure(title="f", x_label="x", y_label="y", series=[], x_log=True, spans=[]),
        Figure(
            title="g",
            x_label="x",
            y_label="y",
            series=[Series(name="s", x=[1, 2], y=[0.1, 3e-9], spread=[0, 1], reference=True)],
            y_log=True,
            spans=[Span(name="start-up", start=0, end=1.5)],
            x_from_zero=True,
        ),
    ],
    maps=[MAP],
    pictures=[Picture(title="flow", source="data:image/png;base64,AA==")],
    facts={"hardware": {"cores": 2, "gpu": None}},
    cells=[{"labels": {"seed": 1}, "result": {"x": [1.5]}}],
)


def test_a_document_survives_json() -> None:
    again = Document.from_dict(json.loads(json.dumps(DOCUMENT.as_dict(), allow_nan=False)))
    assert again == DOCUMENT


def test_a_document_of_tuples_says_the_same() -> None:
    loose = Document(
        title="t", figures=(Figure(title="", x_label="", y_label="", series=(Series(name="", x=(1,), y=(2,)),)),)
    )
    text = json.dumps(loose.as_dict())
    assert json.dumps(Document.from_dict(json.loads(text)).as_dict()) == text


def test_results_of_an_earlier_version_without_the_newer_fields_can_be_read() -> None:
    values = {**DOCUMENT.as_dict()}
    del values["headline"], values["maps"]
    for figure in values["figures"]:
        del figure["spans"], figure["x_from_zero"]
    again = Document.from_dict(values)
    assert (again.headline, again.maps, again.figures[1].spans) == ({}, [], [])


@pytest.mark.parametrize(
    "change",
    [
        {"format": "deepzero results 0"},
        {"title": None, "tables": 3},
        {"tables": [{"title": "x"}]},
        {"figures": [{"title": "x"}]},
        {"figures": ["x"]},
        {"unknown": 1},
    ],
    ids=["format", "tables", "table", "figure", "text", "unknown"],
)
def test_other_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="deepzero results 1"):
        Document.from_dict({**DOCUMENT.as_dict(), **change})


def test_lengths_must_agree() -> None:
    with pytest.raises(InvalidInputError, match="has 2 columns, a row has 1"):
        Table(title="t", columns=["a", "b"], rows=[["1"]])
    with pytest.raises(InvalidInputError, match="as many y and spread values"):
        Series(name="s", x=[1], y=[1], spread=[1, 2])
    with pytest.raises(InvalidInputError, match="a row for each y"):
        replace(MAP, values=[[1, 2]])
    with pytest.raises(InvalidInputError, match="a value for each x"):
        replace(MAP, values=[[1, 2], [3]])
    with pytest.raises(InvalidInputError, match=r"no columns \['c'\]"):
        Table(title="t", columns=["a"], rows=[], bars=["c"])


def test_a_table_in_a_terminal() -> None:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(rich_table(TABLE))
    lines = capture.get().splitlines()
    assert lines[0].strip() == "Speed"
    assert lines[-1].strip() == "Cold."
    assert "│ rge [b]x[/b] │       — │" in lines
    assert "│ cge          │     1.5 │" in lines


def test_a_table_in_markdown() -> None:
    hostile = Table(title="a*b", columns=["x|y", "n"], rows=[["<b>\nline", "1,000"]], note="`code` $x$")
    assert markdown(hostile) == (
        "**a\\*b**\n\n| x\\|y | n |\n|---|---:|\n| \\<b> line | 1,000 |\n\n\\`code\\` \\$x\\$\n"
    )
    assert markdown(Table(title="", columns=["a"], rows=[])) == "| a |\n|---|\n"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2.50", "-3e-4"], True),
        (["37,646", "1.2 ms", "4.6 days", "2 h"], True),
        (["51.00 ± 1.41 (2)", "12%", "3.4×", "~5", "−2"], True),
        (["—", "", "-", "7"], True),
        (["—", ""], False),
        (["1", "cge"], False),
        (["16×16×3×3"], False),
        (["layer 3"], False),
        ([], False),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else str(value),
)
def test_what_counts_as_a_column_of_numbers(cells: list[str], expected: bool) -> None:
    assert numeric_columns(Table(title="", columns=["c"], rows=[[cell] for cell in cells])) == [expected]
