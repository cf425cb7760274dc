"""The check of the built documentation finds what it is there for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

GOOD = "<math><mi>x</mi></math>" * 60
ROW = '<table class="autosummary"><tr><td>{}</td><td>{}</td></tr></table>'


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / ".ci"))
    import check_html

    return check_html


def found(check: Any, folder: Path, *, theory: str = GOOD, page: str = "", style: str = "") -> list[str]:
    (folder / "theory.html").write_text(theory)
    (folder / "page.html").write_text(page)
    (folder / "style.css").write_text(style)
    return list(check.broken(folder))


def test_a_page_that_keeps_its_promises_passes(check: Any, tmp_path: Path) -> None:
    links = (
        '<a href="https://arxiv.org">a link</a><link rel="canonical" href="https://here"><script src="own.js"></script>'
    )
    rows = ROW.format('<a href="#x">name</a>', "Does it.") + ROW.format("<code>VALUES</code>", "The values.")
    assert found(check, tmp_path, page=links + rows, style="a { background: url(own.png) }") == []


@pytest.mark.parametrize(
    "page",
    [
        '<script async src="https://cdn.example/mathjax.js"></script>',
        '<script src="//cdn.example/mathjax.js"></script>',
        '<link rel="stylesheet" href="https://cdn.example/a.css">',
        '<img src="https://badge.example/a.svg">',
        "<style>@import 'https://fonts.example/a.css';</style>",
        '<div style="background: url(https://example/a.png)"></div>',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(check: Any, tmp_path: Path, page: str) -> None:
    [said] = found(check, tmp_path, page=page)
    assert said.startswith("page.html loads ")


def test_a_style_sheet_is_looked_at(check: Any, tmp_path: Path) -> None:
    style = "@font-face { src: url('https://fonts.example/a.woff2') }"
    assert found(check, tmp_path, style=style) == ["style.css loads https://fonts.example/a.woff2"]


@pytest.mark.parametrize(
    ("name", "sentence", "said"),
    [
        ("<code>f</code>", "Does it.", "f has no entry"),
        ('<a href="#f">f</a>', "", "f has no whole sentence"),
        ('<a href="#f">f</a>', "Does it (eq.", "f has no whole sentence"),
    ],
)
def test_a_name_without_an_entry_or_a_sentence_is_found(
    check: Any, tmp_path: Path, name: str, sentence: str, said: str
) -> None:
    assert found(check, tmp_path, page=ROW.format(name, sentence)) == [f"page.html: {said} in the reference"]


@pytest.mark.parametrize("theory", ["no formula", GOOD + r"\(x\)"])
def test_formulas_that_are_left_to_a_script_are_found(check: Any, tmp_path: Path, theory: str) -> None:
    [said] = found(check, tmp_path, theory=theory)
    assert said.startswith("theory.html has ")
