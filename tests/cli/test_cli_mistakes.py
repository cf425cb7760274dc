"""Ordinary mistakes of every command: the answer names the cause and what to type, at once, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("phi", reason="needs the extra physics")

from mistakes_page import PAGE, entry
from mistakes_place import make
from mistakes_table import Answer, Mistake, answer, commands, table

from deepzero.cli.entry_point import COMMANDS

ALL = [(command, mistake) for command in commands() for mistake in table(command)]
FEWER = {"recipes": 8, "completion": 10, "journal": 15}
"""Commands with hardly any option, where twenty mistakes would be the same ones again."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work").resolve()
    make(folder)
    return folder


@pytest.fixture(scope="module")
def said(place: Path) -> Callable[[Mistake], Answer]:
    """What the program says, asked for once."""
    known: dict[str, Answer] = {}

    def ask(mistake: Mistake) -> Answer:
        if mistake.words not in known:
            known[mistake.words] = answer(mistake.words, place)
        return known[mistake.words]

    return ask


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize(("command", "mistake"), ALL, ids=[mistake.words for _, mistake in ALL])
def test_the_answer_names_the_cause_and_what_to_type(
    command: str, mistake: Mistake, place: Path, said: Callable[[Mistake], Answer]
) -> None:
    before = files(place)
    found = said(mistake)
    assert found.code == mistake.code
    assert found.err.startswith("error: ")
    assert "Traceback" not in found.err
    flat = " ".join(found.err.split())
    assert mistake.cause in flat
    assert mistake.remedy in flat
    assert len(found.err.strip().splitlines()) <= 3
    assert len(flat) < 800
    if mistake.leaves:
        shutil.rmtree(place / mistake.leaves)
    assert files(place) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_mistakes(command: str) -> None:
    mistakes = table(command)
    assert len(mistakes) >= FEWER.get(command, 20)
    assert len({mistake.words for mistake in mistakes}) == len(mistakes)
    assert all(shlex.split(mistake.words)[0] == command for mistake in mistakes)
    assert all(mistake.cause and mistake.remedy and mistake.what for mistake in mistakes)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_reads_one_object(command: str, place: Path) -> None:
    mistake = table(command)[0]
    found = answer(f"{mistake.words} --json", place)
    told = json.loads(found.out)
    assert found.out.count("\n") == 1
    assert told["exit_code"] == found.code == mistake.code
    assert f"error: {told['error']}" == found.err.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_answer_is_the_same_when_quiet(command: str, place: Path, said: Callable[[Mistake], Answer]) -> None:
    mistake = table(command)[0]
    quiet = answer(f"{mistake.words} --quiet", place)
    assert (quiet.code, quiet.out, quiet.err) == (mistake.code, "", said(mistake).err)


@pytest.mark.parametrize("command", commands())
def test_the_page_is_up_to_date(command: str, place: Path, said: Callable[[Mistake], Answer]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split(f"\n## {command}\n\n```text\n")[1].split("\n```")[0].split("\n\n")
    mistakes = table(command)
    assert len(shown) == len(mistakes), "python tests/cli/mistakes_page.py"
    for mistake, there in zip(mistakes, shown, strict=True):
        here = entry(mistake, said(mistake), place)
        if mistake.varies:
            assert there.splitlines()[:2] == here.splitlines()[:2]
        else:
            assert there == here, "python tests/cli/mistakes_page.py"


def test_the_page_has_every_command_and_is_linked() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == commands()
    assert str(len(ALL)) in text.split("\n## ")[0]
    assert "../mistakes.md" in (PAGE.parent / "howto" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", ["", "--help", *(f"{command} --help" for command in COMMANDS)])
def test_help_fits_a_screen_of_80_columns(words: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = answer(words, place)
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("usage: deepzero")
    assert max(map(len, found.out.splitlines())) <= 80
