"""Maps as SVG: colours where numbers are, names of rows in their order, lines of equal value."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from deepzero.report import Document, HeatMap, draw_map, page

SVG = "{http://www.w3.org/2000/svg}"
NAMED = HeatMap(
    title="Queried",
    x_label="epoch",
    y_label="layer",
    value_label="%",
    x=[1, 2, 3],
    y=["conv1", "conv2"],
    values=[[0.0, 50.0, 100.0], [100.0, None, 0.0]],
    limits=(0.0, 100.0),
)
BOWL = HeatMap(
    title="Loss",
    x_label="a",
    y_label="b",
    value_label="loss",
    x=[-1.0, 0.0, 1.0],
    y=[-1.0, 0.0, 1.0],
    values=[[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 3.0]],
    contours=True,
    marks={"the weights": (0.0, 0.0)},
)


def pixels(svg: str) -> np.ndarray:
    """The cells, the first row at the top, as they are seen."""
    image = next(element for element in ET.fromstring(svg).iter(f"{SVG}image") if "png" in element.get("href", ""))
    data = base64.b64decode(image.get("href").partition(",")[2])
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    [scale] = re.findall(r"matrix\(\S+ \S+ \S+ (\S+)", image.get("transform"))
    return seen[::-1] if float(scale) < 0 else seen


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_rows_with_names_are_listed_from_the_top_and_every_cell_has_its_colour() -> None:
    svg = draw_map(NAMED)
    assert {"Queried", "epoch", "layer", "%", "conv1", "conv2"} <= set(texts(svg))
    heights = [float(t.get("y")) for t in ET.fromstring(svg).iter(f"{SVG}text") if "".join(t.itertext()) in NAMED.y]
    assert heights == sorted(heights)
    cells = pixels(svg)
    assert cells.shape[:2] == (2, 3)
    colors = matplotlib.colormaps["viridis"]
    for value, at in ((0.0, (0, 0)), (100.0, (0, 2)), (100.0, (1, 0)), (0.0, (1, 2))):
        assert cells[at][:3].tolist() == pytest.approx([round(255 * part) for part in colors(value / 100)[:3]], abs=1)
    assert cells[1, 1][3] == 0  # nothing is known there


def test_rows_with_numbers_rise_from_the_bottom() -> None:
    cells = pixels(draw_map(BOWL)).astype(int)
    assert cells[0, 2].tolist() != cells[2, 2].tolist()
    assert cells[0, 2][:3].tolist() == pytest.approx([253, 231, 36], abs=1)  # the largest value, at the top right


def test_lines_of_equal_value_are_drawn_where_they_are_asked_for_and_marks_are_named() -> None:
    with_lines, without = (draw_map(replace(BOWL, contours=contours)) for contours in (True, False))
    assert with_lines.count("stroke: #ffffff") > without.count("stroke: #ffffff")
    assert "the weights" in texts(without)


@pytest.mark.parametrize("values", [[[None, None]], [[1.0, 1.0]], [[float("nan"), 2.0]]], ids=["none", "flat", "nan"])
def test_what_there_is_little_of_is_drawn_without_a_warning(values: list[Any]) -> None:
    for rows in (["one"], [0.0]):
        shown = replace(NAMED, x=[1, 2], y=rows, values=values, contours=True, limits=None)
        assert ("no data" in texts(draw_map(shown))) == (values == [[None, None]])
    assert "no data" in texts(draw_map(replace(NAMED, x=[], y=[], values=[])))


def test_many_rows_name_as_many_as_can_be_read() -> None:
    rows = [f"layer.{number}" for number in range(100)]
    said = texts(draw_map(replace(NAMED, x=[1], y=rows, values=[[1.0]] * 100)))
    assert 20 <= len(set(said) & set(rows)) <= 40


def test_a_page_holds_a_map_with_its_numbers_and_asks_for_nothing() -> None:
    document = Document(title="Run", maps=[replace(NAMED, note="What it is."), BOWL])
    text = page([document, document], title="Run")
    assert text.count("<caption>Queried: numbers</caption>") == 2
    assert "What it is." in text
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert draw_map(NAMED) == draw_map(HeatMap(**vars(NAMED)))
