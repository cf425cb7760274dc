"""Figures as SVG: well-formed, complete, reproducible, alone or with others in a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from deepzero.report import Figure, Series, Span, draw
from deepzero.report.svg import NARROW

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    '<script>alert("1")</script>',
    "cost $x_{1}$ & $",
    "_hidden",
    "a 'b' \"c\"",
    "μ = 10⁻³",
    "100%",
    "}{%s\\frac",
]


def figure(*series: Series, **changes: object) -> Figure:
    return Figure(**{"title": "Digits", "x_label": "queries", "y_label": "accuracy", "series": series, **changes})


def curve(name: str = "cge", n: int = 4, **changes: object) -> Series:
    return Series(**{"name": name, "x": list(range(1, n + 1)), "y": [0.5 + 0.4 * i / n for i in range(n)], **changes})


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter(f"{SVG}text")]


def curves(svg: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter(f"{SVG}g") if element.get("class") == "series"]


def points(svg: str, number: int = 0) -> int:
    """Vertices of a curve: one M or L each."""
    path = curves(svg)[number].find(f"{SVG}path")
    return 0 if path is None else len(re.findall("[ML]", path.get("d", "")))


def ends(path: ET.Element) -> list[float]:
    """x0, y0, x1, y1 of a line."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]


def bars(svg: str) -> list[float]:
    """Heights of the error bars of the first colour."""
    lines = [p for p in ET.fromstring(svg).iter(f"{SVG}path") if "stroke: #0072b2" in p.get("style", "")]
    found = [ends(line) for line in lines if line.get("d").count("L") == 1]
    return [abs(y1 - y0) for x0, y0, x1, y1 in found if x0 == x1]


def test_labels_names_and_every_point_are_there() -> None:
    svg = draw(figure(curve("cge", 5), curve("rge", 7)))
    assert {"Digits", "queries", "accuracy", "cge", "rge"} <= set(texts(svg))
    assert [points(svg, 0), points(svg, 1)] == [5, 7]


@pytest.mark.parametrize("number", [1, 7, 8, 23])
def test_many_curves_differ_in_colour_or_marker(number: int) -> None:
    svg = draw(figure(*(curve(f"method {i}") for i in range(number))))
    found = curves(svg)
    assert len(found) == number
    marks = {ET.tostring(c.find(f".//{SVG}use")).split(b"href=")[1].split(b" ")[0] for c in found}
    assert len(marks) == number
    assert {f"method {i}" for i in range(number)} <= set(texts(svg))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_shown_as_they_are(name: str) -> None:
    svg = draw(figure(curve(name), title=name, x_label=name, y_label=name))
    assert texts(svg).count(name) == 4
    assert "<script" not in svg


def test_long_texts_are_broken_and_complete() -> None:
    name = "a method with quite a long name that does not fit beside the others in one line of the legend"
    said = " ".join(texts(draw(figure(curve(name), curve("b"), title=name))))
    assert said.count(name) == 2


def test_published_curves_are_grey_and_broken_and_ours_are_not() -> None:
    paper, ours = curves(draw(figure(curve("ours"), curve("paper", reference=True))))  # ours is on top
    style = paper.find(f"{SVG}path").get("style")
    assert "stroke-dasharray" in style
    red, green, blue = re.search(r"stroke: #(..)(..)(..)", style).groups()
    assert red == green == blue
    assert "stroke-dasharray" not in ours.find(f"{SVG}path").get("style")


def test_a_spread_is_drawn_as_bars_for_few_points_and_as_a_band_for_many() -> None:
    few, many = (draw(figure(curve(n=n, spread=[0.05] * n))) for n in (5, 50))
    assert len(bars(few)) == 5
    assert "fill-opacity: 0.2" not in few
    assert len(bars(many)) == 0
    assert many.count("fill-opacity: 0.2") == 1
    assert not bars(draw(figure(curve())))


def test_error_bars_have_the_height_of_the_spread() -> None:
    svg = draw(figure(Series(name="a", x=[1, 2], y=[0.0, 1.0], spread=[0.5, 0.25])))
    _, y0, _, y1 = ends(curves(svg)[0].find(f"{SVG}path"))
    assert bars(svg) == pytest.approx([abs(y1 - y0), abs(y1 - y0) / 2], rel=1e-4)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series(name="", x=[], y=[])],
        [Series(name="one", x=[1e-9], y=[1e12])],
        [Series(name="one", x=[1e-9], y=[1e12], spread=[1e13])],
        [Series(name="nothing to show", x=[1, 2], y=[float("nan"), float("inf")])],
        [Series(name="not above 0", x=[0, -1], y=[-1, 0])],
        [Series(name="flat", x=[1, 2, 3], y=[5, 5, 5], spread=[0, 0, float("nan")])],
    ],
    ids=["none", "empty", "point", "wide", "nan", "negative", "flat"],
)
def test_what_there_is_little_of_is_drawn_without_a_warning(series: list[Series], log: bool) -> None:
    svg = draw(figure(*series, x_log=log, y_log=log))
    assert len(curves(svg)) == len(series)
    visible = any(0 < y < float("inf") or (not log and y <= 0) for s in series for y in s.y)
    assert ("no data" in texts(svg)) == (not visible)


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    series = Series(name="a", x=[0, 1, 10, 100], y=[1, 1, 2, 3])
    assert points(draw(figure(series))) == 4
    assert points(draw(figure(series, x_log=True))) == 3


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_numbers_without_markup(log: bool) -> None:
    said = texts(draw(figure(Series(name="curve", x=[1e-5, 1, 1e6], y=[1e-5, 2, 3e7]), x_log=log, y_log=log)))
    assert not any("$" in text or "mathdefault" in text for text in said)
    assert any(text.endswith("M") for text in said)


def test_a_short_logarithmic_axis_has_labels() -> None:
    said = texts(draw(figure(Series(name="curve", x=[0.2, 0.3], y=[0.2, 0.8]), x_log=True, y_log=True)))
    assert len([text for text in said if re.fullmatch(r"0\.\d+", text)]) >= 4


def test_the_same_figure_gives_the_same_bytes_whatever_the_settings_of_matplotlib(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = figure(curve(spread=[0.1] * 4), curve("rge"), y_log=True)
    first = draw(one)
    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert draw(one) == first
    monkeypatch.undo()
    assert dict(matplotlib.rcParams) == before


def test_identifiers_differ_between_figures_and_every_reference_is_resolved() -> None:
    first, second = draw(figure(curve("a"))), draw(figure(curve("b")))
    named = draw(figure(curve("a")), name="part-2")
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second, named)]
    assert all(ids)
    assert not (ids[0] & ids[1] | ids[0] & ids[2])
    for svg, known in zip((first, second, named), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) == known
    assert all(name.startswith("part-2-") for name in ids[2])


def test_it_is_small_stands_alone_and_leaves_the_page_around_it_as_it_is() -> None:
    svg = draw(figure(curve(), curve("rge")))
    assert len(svg) < 30_000
    assert "<style" not in svg
    assert "<!DOCTYPE" not in svg
    assert "<metadata" not in svg
    assert re.findall(r"https?://[^\"' ]*", svg) == ["http://www.w3.org/2000/svg"]
    assert ET.fromstring(svg).find(f"{SVG}title").text == "Digits"
    assert ET.fromstring(svg).get("role") == "img"


def test_error_bars_at_a_single_place_of_a_logarithmic_axis_are_inside_it() -> None:
    series = [Series(name=name, x=[500], y=[y], spread=[1.0]) for name, y in (("a", 20.0), ("b", 10.0))]
    text = draw(Figure(title="one place", x_label="images", y_label="accuracy", series=series, x_log=True))
    assert ">400</text>" in text
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', text)[1])
    places = [float(x) for x in re.findall(r'<use [^>]*x="([-\d.]+)"', text)]
    assert places
    assert all(0 < x < width for x in places)


def test_curves_that_run_where_another_does_are_broken_and_have_empty_marks() -> None:
    same, other = curve("again"), Series(name="other", x=[1, 2, 3, 4], y=[0.1, 0.2, 0.3, 0.4])
    first, second, third = curves(draw(figure(curve("first"), same, other)))
    assert "stroke-dasharray" not in first.find(f"{SVG}path").get("style")
    assert "stroke-dasharray" in second.find(f"{SVG}path").get("style")
    assert "stroke-dasharray" not in third.find(f"{SVG}path").get("style")


def test_a_longer_run_of_the_same_curve_is_told_from_the_shorter_one() -> None:
    short, long = curves(draw(figure(curve(n=3), Series(name="on", x=[1, 2, 3, 4, 5], y=[*curve(n=3).y, 1.0, 1.1]))))
    assert "stroke-dasharray" in long.find(f"{SVG}path").get("style")
    assert "stroke-dasharray" not in short.find(f"{SVG}path").get("style")


def test_an_axis_begins_at_0_and_a_stretch_of_it_is_marked_and_named() -> None:
    late = Series(name="late", x=[100.0, 101.0], y=[1.0, 2.0])
    plain = draw(figure(late))
    told = draw(figure(late, x_from_zero=True, spans=[Span(name="start-up: 99 s", start=0.0, end=99.0)]))
    assert "0" not in texts(plain)
    assert "0" in texts(draw(figure(late, x_from_zero=True)))
    assert {"0", "start-up: 99 s"} <= set(texts(told))
    assert told.count("fill: #e6dfc8") == 2  # the stretch, and its place in the legend
    assert "#e6dfc8" not in plain
    assert "0" not in texts(draw(figure(late, x_from_zero=True, x_log=True)))


def test_letters_on_a_page_are_large_enough_for_a_phone() -> None:
    """A figure as wide as a phone of 360 pixels, less margins: letters of 11 pixels and more."""
    svg = draw(figure(curve()), sheet=NARROW)
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) * 318 / width >= 11
