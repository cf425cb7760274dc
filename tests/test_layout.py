"""The layout shows the architecture: one name for one thing, files that are a subject, pages that name what is there."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "deepzero"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYWHERE = {"__init__", "base"}
"""File names that stand for the same thing in every package."""
FRAGMENT = 60
"""Lines up to which a file is looked at as a fragment of another one."""
QUESTIONS = ("What ", "Whether ", "Where ", "How ", "Which ", "Who ", "Does ")
FOLDERS = ["src", "tests", "docs", "benchmarks", "examples", ".ci"]
PAGES = ["CONTRIBUTING.md", "docs/architecture.md"]
NAMED_FILE = re.compile(r"`([\w./<>*-]+\.(?:py|pyi|md|toml|sh))(?:::?[\w.]+)?`")


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def twice(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def test_no_file_name_stands_for_two_subjects() -> None:
    assert twice([path.stem for path in FILES if path.stem not in EVERYWHERE]) == []


def test_no_class_name_stands_for_two_things() -> None:
    names = [node.name for tree in trees().values() for node in tree.body if isinstance(node, ast.ClassDef)]
    assert twice(names) == []


def test_few_files_are_fragments() -> None:
    files = [path for path in FILES if path.stem not in EVERYWHERE]
    short = [path.stem for path in files if len(path.read_text(encoding="utf-8").splitlines()) <= FRAGMENT]
    assert len(short) <= len(files) / 7, short


def test_docstrings_say_what_a_thing_is() -> None:
    """Not which question it answers: "Return True if …", "Progress bar.", not "Whether …", "What …"."""
    found = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if text.startswith(QUESTIONS):
                    found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_pages_name_are_there(page: str) -> None:
    named = NAMED_FILE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert named
    tracked = [f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    missing = [
        name for name in named if not (ROOT / name).exists() and not any(t.endswith(f"/{name}") for t in tracked)
    ]
    assert [name for name in missing if "<" not in name and "*" not in name] == []
