"""One page that needs nothing else: complete, well-formed, escaped, reproducible, accessible."""

from __future__ import annotations

import re

import pytest
from pages import Page

from deepzero.report import Document, Figure, Series, Table, page
from deepzero.report.value_text import shown

HOSTILE = "<script>alert('1')</script> & \"quotes\" <img src=x onerror=y>"
CURVE = Series(name="cge", x=[1000, 2000], y=[0.123456, 0.75], spread=[0.01, 0.02])
DOCUMENT = Document(
    title="Schedules",
    caption="What was run.\n\n    deepzero train --resume --out 'a b'",
    headline={"test accuracy": "97.13%"},
    tables=[
        Table(
            title="Accuracy",
            columns=["method", "accuracy", "kept"],
            rows=[["cge", "51.00 ± 1.41 (2)", "12.5%"], ["rge", "—", "100%"]],
            note="Means of two.",
            bars=["kept"],
        )
    ],
    figures=[Figure(title="Curves", x_label="queries", y_label="accuracy", series=[CURVE, CURVE])],
    facts={"command": "deepzero reproduce", "seeds": [4, 8, 15], "hardware": {"cpu": "Z80", "gpu": None, "cores": 3}},
    cells=[{"labels": {"seed": 41}, "result": {"loss": 0.98765, "curve": [float(i) + 0.25 for i in range(99)]}}],
)


def test_it_is_well_formed_and_every_text_and_number_of_the_document_is_there() -> None:
    read = Page(page([DOCUMENT], title="Report"))
    said = "\n".join(read.texts)
    for text in ("Schedules", "What was run.", "deepzero train --resume --out 'a b'", "97.13%", "test accuracy"):
        assert text in said
    for text in ("Accuracy", "method", "51.00 ± 1.41 (2)", "12.5%", "Means of two."):
        assert text in read.texts
    for number in (*CURVE.x, *CURVE.y, *CURVE.spread):
        assert read.cells.count(shown(number)) >= 2
    for text in ("deepzero reproduce", "4, 8, 15", "Z80", "3", "41", "0.98765"):
        assert text in read.cells
    assert shown(DOCUMENT.cells[0]["result"]["curve"]) in said


def test_it_asks_for_nothing_from_elsewhere() -> None:
    source = page([DOCUMENT, DOCUMENT], title="Report")
    read = Page(source)
    assert {tag for tag, _ in read.elements} & {"script", "link", "iframe", "object", "img", "base"} == set()
    assert read.attributes("src") == []
    assert all(link.startswith("#") for link in read.attributes("href"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    assert set(re.findall(r"https?:[^\"' ]*", source)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in source


def test_identifiers_are_unique_even_if_a_document_is_shown_twice_and_links_lead_to_them() -> None:
    read = Page(page([DOCUMENT, DOCUMENT], title="Report"))
    ids = read.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in read.attributes("href")} <= set(ids)
    assert set(read.attributes("aria-labelledby")) <= set(ids)


def test_several_documents_have_a_table_of_contents_and_a_single_one_has_none() -> None:
    assert Page(page([DOCUMENT], title="Report")).count("nav") == 0
    read = Page(page([DOCUMENT, Document(title="Other")], title="Report"))
    assert [attrs["href"] for tag, attrs in read.elements if tag == "a"] == ["#part-1", "#part-2"]


def test_hostile_texts_are_shown_as_they_are() -> None:
    series = Series(name=HOSTILE, x=[1], y=[2])
    hostile = Document(
        title=HOSTILE,
        caption=HOSTILE,
        headline={HOSTILE: HOSTILE},
        tables=[Table(title=HOSTILE, columns=[HOSTILE], rows=[[HOSTILE]], note=HOSTILE, bars=[HOSTILE])],
        figures=[Figure(title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, series=[series])],
        facts={HOSTILE: HOSTILE, "more": {HOSTILE: [HOSTILE]}},
        cells=[{HOSTILE: HOSTILE}],
    )
    read = Page(page([hostile, hostile], title=HOSTILE))
    assert read.count("script") == read.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in read.elements for name in attrs)
    assert sum(HOSTILE in text for text in read.texts) >= 2 * 14


def test_it_can_be_read_without_eyes() -> None:
    read = Page(page([DOCUMENT], title="Report"))
    assert ("html", {"lang": "en"}) in read.elements
    assert read.count("h1") == 1
    assert read.count("caption") == read.count("table") == read.count("thead")
    heads = [attrs for tag, attrs in read.elements if tag == "th"]
    assert {attrs.get("scope") for attrs in heads} == {"col", "row"}
    pictures = [attrs for tag, attrs in read.elements if tag == "svg"]
    assert pictures
    assert all(attrs["role"] == "img" for attrs in pictures)
    assert all(attrs.get("aria-label") for _, attrs in read.elements if attrs.get("role") == "region")


def test_numbers_stand_to_the_right_and_texts_to_the_left() -> None:
    source = page([DOCUMENT], title="Report")
    assert '<td class="number" data-name="accuracy">51.00 ± 1.41 (2)</td>' in source
    assert '<td data-name="method">cge</td>' in source
    assert '<th scope="col" class="number">accuracy</th>' in source


@pytest.mark.parametrize(("text", "part"), [("12.5%", "12.5%"), ("250%", "100%"), ("-3%", "0%"), ("—", None)])
def test_a_bar_is_as_long_as_its_percentage(text: str, part: str | None) -> None:
    table = Table(title="", columns=["kept"], rows=[[text], ["1%"]], bars=["kept"])
    drawn = Page(page([Document(title="", tables=[table])], title="")).attributes("style")
    assert drawn == [f"--part: {length}" for length in (part, "1%") if length]


def test_the_same_documents_give_the_same_bytes() -> None:
    assert page([DOCUMENT], title="Report") == page([Document.from_dict(DOCUMENT.as_dict())], title="Report")


def test_nothing_at_all_is_a_page_too() -> None:
    assert "Nothing yet" in Page(page([Document(title="Nothing yet")], title="Report")).texts
    assert Page(page([], title="Report")).count("section") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(scheme: str) -> None:
    """WCAG 2.1: at least 4.5 between texts and what they stand on."""
    source = page([], title="Report")
    blocks = re.findall(r":root \{([^}]*)\}", source)
    colors = dict(re.findall(r"--(\w+): (#\w+)", blocks[("light", "dark").index(scheme)]))

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(colors[a]), luminance(colors[b])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "soft", "link"):
        assert min(contrast(text, "paper"), contrast(text, "panel")) >= 4.5
    assert contrast("ink", "bar") >= 4.5
