"""The page "Mistakes and answers": every line of the tables in ``mistakes/``, and what the program says to it.

Run it from the root of the repository after a message has changed:

    python tests/cli/mistakes_page.py
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from mistakes_place import make  # noqa: E402 - beside this file
from mistakes_table import Answer, Mistake, answer, commands, table  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
HOME = "FOLDER"
"""Stands for the folder in which the commands were run."""
WIDTH = 110

HEAD = """# Mistakes and answers

What `deepzero` says to {count} ordinary mistakes, command by command: every answer names the cause and what to type, before any long work. The lines were typed in
a folder that is called `{home}` here, which holds data, a few runs, and files of Python with faults. The exit code is 2 where nothing else is said. Long answers are broken here; the program does not break them.

This page is made by `python tests/cli/mistakes_page.py`, and a test compares it with what the program says.

"""


def page(found: Mapping[Mistake, Answer], by_command: Mapping[str, list[Mistake]], place: Path) -> str:
    """The whole page, from answers that were given in a folder."""
    text = HEAD.format(count=len(found), home=HOME)
    for command, mistakes in by_command.items():
        entries = [entry(mistake, found[mistake], place) for mistake in mistakes]
        text += f"## {command}\n\n```text\n" + "\n\n".join(entries) + "\n```\n\n"
    return text.rstrip("\n") + "\n"


def entry(mistake: Mistake, said: Answer, place: Path) -> str:
    """What is wrong, the line, and the answer."""
    ends = f" (exit code {said.code})" if said.code != 2 else ""
    shown = said.err.strip().replace(str(place), HOME)
    lines = [part for line in shown.splitlines() for part in _broken(line)]
    return "\n".join([f"# {mistake.what}{ends}", f"$ deepzero {mistake.words}", *lines])


def _broken(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def made() -> str:
    """The page, from scratch."""
    by_command = {command: table(command) for command in commands()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        make(place)
        found = {mistake: answer(mistake.words, place) for rows in by_command.values() for mistake in rows}
        return page(found, by_command, place)


if __name__ == "__main__":
    PAGE.write_text(made(), encoding="utf-8")
