"""Functions of the user's own: found, called with settings, and every mistake in them named with its line."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from deepzero.errors import DataNotFoundError, InvalidInputError
from deepzero.own.code import called, imported, is_own, located, require_kind
from deepzero.own.function_arguments import settings_of


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder of its own; what is imported there is forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("word", "own"), [("digits", False), ("my.py", True), ("a/my.py:f", True), ("pkg.mod:f", True), ("my", False)]
)
def test_words_of_ones_own(word: str, own: bool) -> None:
    assert is_own(word) == own


def test_a_file_a_function_of_it_and_a_module() -> None:
    write("mine_a.py", "def recipe(): return 1\ndef other(): return 2\nVALUE = 3\n")
    assert imported("mine_a.py")() == 1
    assert imported("mine_a.py", default="other")() == 2
    assert imported("mine_a.py:other")() == 2
    assert imported("mine_a:other")() == 2
    assert imported("mine_a.py:VALUE") == 3
    assert imported(str(Path("mine_a.py").resolve()) + ":recipe")() == 1


def test_a_file_may_import_its_neighbours_even_while_it_runs() -> None:
    write("sub/beside_now.py", "NUMBER = 5\n")
    write("sub/beside_later.py", "NUMBER = 6\n")
    write(
        "sub/mine_b.py",
        "from beside_now import NUMBER\ndef recipe():\n    import beside_later as later\n    return NUMBER + later.NUMBER\n",
    )
    assert called(imported("sub/mine_b.py"), {}) == 11


def test_a_file_of_a_package_may_import_relatively() -> None:
    write("pack/__init__.py", "")
    write("pack/beside.py", "NUMBER = 5\n")
    write("pack/mine_c.py", "from .beside import NUMBER\ndef recipe(): return NUMBER\n")
    assert imported("pack/mine_c.py")() == 5
    assert imported("pack.mine_c:recipe")() == 5


def test_what_a_file_defines_can_be_sent_to_workers() -> None:
    write("mine_d.py", "def recipe(): return 1\n")
    assert pickle.loads(pickle.dumps(imported("mine_d.py"))) is imported("mine_d.py")


@pytest.mark.parametrize(
    ("files", "word", "expected"),
    [
        ({}, "none.py", r"none.py does not exist \(looked in .*\); expected file.py, file.py:function or module:fu"),
        ({"recipe_x.py": ""}, "recipes_x.py", r"does not exist \(did you mean recipe_x.py\?\)"),
        ({}, "nowhere/none.py", r"nowhere/none.py does not exist"),
        ({}, "no_such_module:f", r"there is no module 'no_such_module' in .* or among the installed packages"),
        ({"mod/x.py": ""}, "mod/x:f", r"'mod/x' is no module and no .py file; expected file.py"),
        ({}, "a b:f", r"'a b' is no module and no .py file"),
        ({}, ":f", r"expected file.py, file.py:function or module:function, got ':f'"),
        ({"e.py": ""}, "e.py:", r"expected file.py, .*, got 'e.py:'"),
        ({"e1.py": ""}, "e1.py", r"e1.py has no 'recipe'; it defines nothing"),
        (
            {"e2.py": "def recipes(): 1\n"},
            "e2.py",
            r"no 'recipe' \(did you mean recipes\?\); there are: recipes. Type e2",
        ),
        (
            {"e3.py": "from json import dumps\ndef f(): 1\n"},
            "e3.py:g",
            r"e3.py has no 'g'; there are: f\. Type e3.py:NAME",
        ),
        (
            {"e4.py": "x = 1\ndef f(:\n"},
            "e4.py",
            r"e4.py cannot be imported: e4.py, line 2: SyntaxError: invalid syntax",
        ),
        ({"e10.py": "x = 1\0\n"}, "e10.py", r"e10.py cannot be imported: SyntaxError: source code .* null bytes$"),
        (
            {"e5.py": "\n\nimport nothing_here\n"},
            "e5.py",
            r"e5.py, line 3: ModuleNotFoundError: .*; install it, or put not",
        ),
        (
            {"e6.py": "\n1 / 0\n"},
            "e6.py",
            r"e6.py cannot be imported: e6.py, line 2: ZeroDivisionError: division by zero",
        ),
        (
            {"e7.py": "import sys\nsys.exit(3)\n"},
            "e7.py",
            r"e7.py ends the program when it is imported; put .* `if __name",
        ),
        ({"e8.py": "from . import x\n"}, "e8.py", r"relative import .*; write `import name` for a file beside it"),
        ({"json.py": "def recipe(): 1\n"}, "json.py", r"json.py has the name of another module, json, .*; rename"),
        ({"torch.py": "def recipe(): 1\n"}, "torch.py", r"torch.py has the name of another module, torch, .*; rename"),
        ({"e9.py": "import f9\n", "f9.py": "import e9.x\n"}, "e9.py", r"f9.py, line 1: ModuleNotFoundError"),
        ({"d.py/x.txt": ""}, "d.py", r"d.py is a folder"),
        (
            {"e10.py": "import torch\ntorch.ones(2) @ torch.ones(3)\n"},
            "e10.py",
            r"e10.py, line 2: RuntimeError: incons",
        ),
    ],
)
def test_what_cannot_be_imported_is_said_with_its_line(files: dict[str, str], word: str, expected: str) -> None:
    for name, text in files.items():
        write(name, text)
    with pytest.raises(InvalidInputError, match=expected):
        imported(word)


def test_a_file_that_failed_can_be_corrected_and_tried_again() -> None:
    write("mine_e.py", "1 / 0\n")
    with pytest.raises(InvalidInputError):
        imported("mine_e.py")
    write("mine_e.py", "def recipe(): return 1\n\n")
    assert imported("mine_e.py")() == 1


class Colour(Enum):
    RED = 1
    GREEN = 2


def settable(
    whole: int = 1,
    real: float = 0.5,
    flag: bool = False,
    text: str = "a",
    place: Path | None = None,
    kind: Literal["cge", "rge"] = "cge",
    sizes: tuple[int, ...] = (1,),
    maybe: int | None = 3,
    loose: int | str | None = None,
    guessed: float = 2.0,
    pair: tuple[int, str] = (0, ""),
    colour: Colour = Colour.RED,
    table: dict[str, int] | None = None,
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("whole", "3", 3),
        ("real", "3", 3.0),
        ("real", "1e-3", 1e-3),
        ("real", "inf", float("inf")),
        ("flag", "true", True),
        ("flag", "No", False),
        ("text", "12", "12"),
        ("place", "a/b", Path("a/b")),
        ("kind", "rge", "rge"),
        ("sizes", "1,2", (1, 2)),
        ("sizes", "[4, 5]", (4, 5)),
        ("sizes", "3", (3,)),
        ("pair", "1,a", (1, "a")),
        ("colour", "green", Colour.GREEN),
        ("table", "{'a': 1}", {"a": 1}),
        ("maybe", "none", None),
        ("maybe", "7", 7),
        ("loose", "7", 7),
        ("loose", "word", "word"),
        ("guessed", "7", 7.0),
    ],
)
def test_settings_become_what_the_parameter_asks_for(name: str, word: str, value: Any) -> None:
    found = called(settable, {name: word})[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("whole", "2.5", "--set whole takes a whole number, got '2.5'"),
        ("whole", "x", "--set whole takes a whole number, got 'x'"),
        ("real", "x", "--set real takes a number, got 'x'"),
        ("real", "True", "--set real takes a number, got 'True'"),
        ("flag", "maybe", "--set flag takes yes or no, got 'maybe'"),
        ("kind", "cga", "--set kind takes one of cge, rge, got 'cga'"),
        ("sizes", "3,x", "--set sizes takes a whole number, or several of them separated by commas, got '3,x'"),
        ("pair", "1", "--set pair takes 2 values, separated by commas, got '1'"),
        ("table", "1", "--set table takes a mapping such as"),
        ("colour", "blue", "--set colour takes one of RED, GREEN, got 'blue'"),
        ("maybe", "x", "--set maybe takes a whole number or none, got 'x'"),
        ("guessed", "x", "--set guessed takes a number, got 'x'"),
        ("rael", "1", r"settable has no parameter 'rael' \(did you mean real\?\); there are: whole, real"),
    ],
)
def test_settings_that_do_not_fit(name: str, word: str, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        called(settable, {name: word})


def test_a_parameter_without_a_default_must_be_set() -> None:
    def needs(a: str, b: int, c: int = 1) -> tuple[str, int, int]:
        return a, b, c

    with pytest.raises(InvalidInputError, match="needs needs a, b; add --set a=VALUE --set b=VALUE, or give a default"):
        called(needs, {})
    assert called(needs, {"a": "x", "b": "2"}) == ("x", 2, 1)


def test_classes_partials_open_keywords_and_positional_only_parameters() -> None:
    class Thing:
        def __init__(self, size: int) -> None:
            self.size = size

    def first(a: int, /, b: int = 2, **rest: Any) -> tuple[int, int, dict[str, str]]:
        return a, b, rest

    assert called(Thing, {"size": "3"}).size == 3
    assert called(functools.partial(settable, whole=5), {"real": "1"})["real"] == 1.0
    assert called(first, {"a": "1", "other": "x"}) == (1, 2, {"other": "x"})


def test_what_is_no_function_is_handed_on_and_takes_no_settings() -> None:
    ready = [1, 2]
    assert called(ready, {}) is ready
    with pytest.raises(
        InvalidInputError, match=r"--set is for the parameters of a function, but list .* leave out --set"
    ):
        called(ready, {"a": "1"})


def test_a_function_that_fails_is_named_with_the_line() -> None:
    write("mine_f.py", "import torch\n\ndef recipe():\n    return torch.ones(2) @ torch.ones(3)\n\ndef empty(): pass\n")
    with pytest.raises(InvalidInputError, match=r"recipe failed: mine_f.py, line 4: RuntimeError: inconsistent tensor"):
        called(imported("mine_f.py"), {})
    with pytest.raises(InvalidInputError, match=r"empty returned nothing; let it end in `return"):
        called(imported("mine_f.py:empty"), {})


def test_an_error_of_the_library_keeps_its_kind() -> None:
    def missing() -> None:
        raise DataNotFoundError("not there")

    with pytest.raises(DataNotFoundError, match="not there"):
        called(missing, {})


def test_words_of_set() -> None:
    assert settings_of(["a=1", "b=", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}
    for words, expected in [
        (["a"], "--set takes name=value, got 'a'; for example --set depth=3"),
        (["=1"], "--set takes name=value, got '=1'"),
        (["a=1", "a=2"], r"--set a=... is given twice \('1' and '2'\)"),
    ]:
        with pytest.raises(InvalidInputError, match=expected):
            settings_of(words)


def test_a_value_of_another_kind() -> None:
    require_kind(1, (int,), "my.py", "a whole number")
    with pytest.raises(InvalidInputError, match=r"my.py must give a whole number; it gives str 'x'"):
        require_kind("x", (int,), "my.py", "a whole number")


def test_an_error_without_a_line_of_the_users() -> None:
    assert located(ValueError("a\n b")) == "ValueError: a b"
