"""The ten tasks that newcomers bring: each takes at most 15 lines of their own. The documentation build runs the scripts."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BEGIN, END = "# [your lines]", "# [end]"
TASKS = {
    "image_folder_shell",
    "image_folder_python",
    "resume_after_kill",
    "use_a_run",
    "f1_loss",
    "lstm",
    "bert_head",
    "scipy_function",
    "slow_simulator",
    "spiking_network",
}
LIMIT = 15


def own_lines(source: str) -> list[str]:
    """The lines between the markers, without imports, comments, docstrings and blank lines.

    A program that a script holds as text (for a file, or a fresh process) is counted by the same rules.
    """
    lines = source.splitlines()
    begins, ends = ([k for k, line in enumerate(lines) if line.strip() == mark] for mark in (BEGIN, END))
    assert len(begins) == len(ends) == 1, "one pair of markers"
    chosen = set(range(begins[0] + 1, ends[0]))
    idle = _idle(source) | {k for k in chosen if not lines[k].strip() or lines[k].strip().startswith("#")}
    for text, start in _texts(source):
        idle |= {start + k for k in _idle(text)}
    return [lines[k] for k in sorted(chosen - idle)]


def _idle(source: str) -> set[int]:
    """Numbers of the lines, from 0, of imports and docstrings."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        spans = [node] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)) and ast.get_docstring(node) is not None:
            spans.append(node.body[0])
        for span in spans:
            found |= set(range(span.lineno - 1, (span.end_lineno or span.lineno)))
    return found


def _texts(source: str) -> list[tuple[str, int]]:
    """Programs in triple quotes, and the number of the line on which each begins."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    strings = [token for token in tokens if token.type == tokenize.STRING and token.string.startswith('"""\n')]
    found = []
    for token in strings:
        text = ast.literal_eval(token.string)
        try:
            ast.parse(text)
        except SyntaxError:
            continue  # prose
        found.append((text, token.start[0] - 1))
    return found


def test_what_counts_as_a_line() -> None:
    inside = ["import os", "", "x = f(", "    1,", ")", "def f():", '    """Doc."""', "    return 1  # why"]
    source = "\n".join(["y = 0", BEGIN, *inside, "    # note", END, "z = 0"])
    assert own_lines(source) == ["x = f(", "    1,", ")", "def f():", "    return 1  # why"]
    held = "\n".join(['PROGRAM = """', "import os", BEGIN, "from os import path", "a = 1", END, '"""'])
    assert own_lines(held) == ["a = 1"]
    whole = "\n".join([BEGIN, 'NET = """', "import os", "a = 1", '"""', END])
    assert own_lines(whole) == ['NET = """', "a = 1", '"""']


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_newcomer_s_task_takes_at_most_fifteen_lines(name: str) -> None:
    lines = own_lines((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    assert 0 < len(lines) <= LIMIT, "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert not [line for line in lines if ";" in line]


def test_the_tasks_are_the_marked_scripts_and_the_gallery_lists_them() -> None:
    marked = {path.stem for path in EXAMPLES.glob("*.py") if BEGIN in path.read_text(encoding="utf-8")}
    assert marked == TASKS
    listed = (EXAMPLES / "GALLERY_HEADER.rst").read_text(encoding="utf-8")
    assert [name for name in TASKS if f"</gallery/examples/{name}>" not in listed] == []


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_that_it_was_done(name: str) -> None:
    """The build fails if a script's own check does."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert checks
    assert all(not isinstance(check.test, ast.Constant) for check in checks)
