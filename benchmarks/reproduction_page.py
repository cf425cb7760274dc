"""Put the recorded tables and figures into the page "Reproduction" of the documentation.

    python benchmarks/reproduction_page.py NAME ...

Between the marks ``<!-- record: NAME -->`` and ``<!-- end -->`` of docs/reproduction.md stands what the record
benchmarks/records/reproduce-NAME.json holds; a test compares the two. Figures are drawn of the records that are named,
and of all without a name: another version of matplotlib draws the same figure in other bytes.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deepzero.report import Document, markdown
from deepzero.report.svg import draw

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduction.md"
FIGURES = ROOT / "docs" / "figures"
RECORDS = ROOT / "benchmarks" / "records"
MARKED = re.compile(r"(<!-- record: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the content of its records between the marks."""
    return MARKED.sub(lambda found: f"{found[1]}{section(found[2])}{found[3]}", page)


def section(name: str) -> str:
    """A record as the page shows it."""
    path = RECORDS / f"reproduce-{name}.json"
    if not path.exists():
        return "Not recorded yet.\n"
    document = Document.from_dict(json.loads(path.read_text(encoding="utf-8")))
    facts = document.facts
    hardware, versions = facts["hardware"], facts["versions"]
    machine = f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores, torch {versions['torch']}"
    lines = [
        f"{document.caption} Recorded by `{facts['command']}`, {facts['date'][:10]}, {machine}; {facts['cells']}.\n",
        *map(markdown, document.tables),
        *(f"![{figure.title}](figures/{name}-{k}.svg)\n" for k, figure in enumerate(document.figures, start=1)),
        *(
            f"![{picture.title}](figures/{name}-picture-{k}.png)\n\n{picture.title[:1].upper()}{picture.title[1:]}.\n"
            for k, picture in enumerate(document.pictures, start=1)
        ),
    ]
    return "\n" + "\n".join(lines) + "\n"


def draw_figures(names: Sequence[str] = ()) -> None:
    """Every figure of some records, or of all, as an SVG file beside the page, and every picture as a PNG file."""
    FIGURES.mkdir(exist_ok=True)
    every = sorted(RECORDS.glob("reproduce-*.json"))
    for path in [RECORDS / f"reproduce-{name}.json" for name in names] or every:
        document = Document.from_dict(json.loads(path.read_text(encoding="utf-8")))
        name = path.stem.removeprefix("reproduce-")
        for number, figure in enumerate(document.figures, start=1):
            (FIGURES / f"{name}-{number}.svg").write_text(draw(figure, name=f"{name}-{number}"), encoding="utf-8")
        for number, picture in enumerate(document.pictures, start=1):
            encoded = picture.source.removeprefix("data:image/png;base64,")
            (FIGURES / f"{name}-picture-{number}.png").write_bytes(base64.b64decode(encoded, validate=True))


if __name__ == "__main__":
    draw_figures(sys.argv[1:])
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
