"""Look at the documentation as it was built: ``python .ci/check_html.py FOLDER``; exit code 1 if a promise is broken.

Pages load nothing from anybody else's server, formulas are MathML, and a name in a table of the reference has a
sentence, and a link unless it is a value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

SOURCES = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LOADED = {"stylesheet", "preload", "modulepreload", "prefetch", "icon", "manifest", "preconnect", "dns-prefetch"}
"""Values of ``rel`` for which a browser fetches a link by itself."""
ELSEWHERE = re.compile(r"^(https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"""(?:url\(|@import)\s*['"]?((?:https?:)?//[^'")\s]+)""", re.IGNORECASE)
CUT_OFF = re.compile(r"\b(eq|fig|sec|cf|al)\.$", re.IGNORECASE)
"""An abbreviation that was taken for the end of a sentence."""
LATEX = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)


class Page(HTMLParser):
    """What a page loads, how many formulas it has, and which rows of its summary tables say nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = IN_STYLES.findall(text)
        self.formulas = 0
        self.bare: list[str] = []
        self._in_summary = self._linked = False
        self._cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads, and where in a summary table it stands."""
        given = {name: value or "" for name, value in attrs}
        loaded = given.get(SOURCES.get(tag, ""), "")
        if tag == "link" and LOADED & set(given.get("rel", "").split()):
            loaded = given.get("href", "")
        if ELSEWHERE.match(loaded):
            self.elsewhere.append(loaded)
        self.formulas += tag == "math"
        if tag == "table":
            self._in_summary = "autosummary" in given.get("class", "")
        elif tag == "tr":
            self._cells, self._linked = [], False
        elif tag == "td":
            self._cells.append("")
        elif tag == "a" and len(self._cells) == 1:
            self._linked = True

    def handle_data(self, data: str) -> None:
        """The text of a cell."""
        if self._cells:
            self._cells[-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        """The end of a row: the name of a function, class or value, and its sentence."""
        if tag == "tr" and self._in_summary and self._cells:
            name, sentence = (*self._cells, "")[:2]
            if not sentence or CUT_OFF.search(sentence):
                self.bare.append(f"{name} has no whole sentence")
            elif not self._linked and not name.isupper() and name != "ExecutorSource":
                self.bare.append(f"{name} has no entry")


def broken(folder: Path) -> Iterator[str]:
    """What is wrong, in words."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(folder)
        yield from (f"{name} loads {url}" for url in page.elsewhere)
        yield from (f"{name}: {row} in the reference" for row in page.bare)
    for path in sorted(folder.rglob("*.css")):
        yield from (f"{path.relative_to(folder)} loads {url}" for url in IN_STYLES.findall(path.read_text("utf-8")))
    theory = folder / "theory.html"
    if theory not in pages:
        yield f"{folder} holds no theory.html; build the documentation into it first"
    elif pages[theory].formulas < 50 or LATEX.search(theory.read_text(encoding="utf-8")):
        yield f"theory.html has {pages[theory].formulas} formulas in MathML, and should have more than 50 and no LaTeX"


def main() -> int:
    """Print what is wrong."""
    found = list(broken(Path(sys.argv[1])))
    print("\n".join(found) or f"{sys.argv[1]}: nothing is loaded from elsewhere, formulas and tables are in order")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
