"""Ordinary mistakes by command, in ``mistakes/COMMAND.toml``: what is typed, what is wrong, what the answer must hold."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepzero.cli import main

FOLDER = Path(__file__).parent / "mistakes"


@dataclass(frozen=True)
class Mistake:
    """A line that somebody types.

    Attributes:
        words: after ``deepzero``, as a shell reads them.
        what: is wrong.
        cause: text of the answer that names it.
        remedy: text of the answer that says what to type, or what to do.
        code: exit code.
        varies: the answer quotes another library, so that only cause and remedy are the same everywhere.
        leaves: a folder that stays, because the same command goes on in it.
    """

    words: str
    what: str
    cause: str
    remedy: str
    code: int = 2
    varies: bool = False
    leaves: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def table(command: str) -> list[Mistake]:
    """The mistakes of one command."""
    with (FOLDER / f"{command}.toml").open("rb") as file:
        return [Mistake(**row) for row in tomllib.load(file)["mistake"]]


def commands() -> list[str]:
    """Names of the tables; ``deepzero`` is the program without a command."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def answer(words: str, place: Path) -> Answer:
    """Run a command in a folder; modules of the user's own are forgotten afterwards."""
    out, err = io.StringIO(), io.StringIO()
    with _at(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(words))
    return Answer(code, out.getvalue(), err.getvalue())


@contextmanager
def _at(place: Path) -> Iterator[None]:
    before, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    kept = {name: os.environ.pop(name, None) for name in ("DEEPZERO_DATA",)}
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(place)):
                del sys.modules[name]
        os.environ.update({name: value for name, value in kept.items() if value is not None})
