"""A journal answers one problem and refuses another: same names and numbers, but another function."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boxes
import numpy as np
import pytest
import torch
from torch import nn

import deepzero as dz
from deepzero.errors import InvalidInputError, JournalError
from deepzero.executors.problem import problem_of, read_callable

START = {"w": np.ones(3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queries.sqlite"


def ask(path: Path, fn: Callable[..., Any], params: Any = None, problem: str | None = None) -> float:
    """The base loss of one estimate with a journal."""
    box = dz.BlackBox(fn, {"w": np.ones(3)} if params is None else params)
    with dz.QueryJournal(path, problem=problem) as journal, ThreadPoolExecutor(1) as pool:
        return float(dz.CGE(box, step_size=0.5, executor=pool, journal=journal).estimate().loss)


def total(params: Any) -> float:
    return float(params["w"].sum())


def product(params: Any) -> float:
    return float(params["w"].prod())


# The journal -------------------------------------------------------------------------------------------------------------


def test_another_function_gets_none_of_the_answers(path: Path) -> None:
    ask(path, total)
    with pytest.raises(
        JournalError, match=r"answers the problem '.*\.total [0-9a-f]{16}', but this one is '.*\.product"
    ):
        ask(path, product)
    assert ask(path, total) == 3.0


def test_other_shapes_are_another_problem(path: Path) -> None:
    ask(path, total)
    for other in (
        {"w": np.ones(4)},
        {"w": np.ones(3, dtype=np.float32)},
        {"v": np.ones(3), "w": np.ones(3)},
        {"w": torch.ones(3, dtype=torch.float64)},
    ):
        with pytest.raises(JournalError, match="answers the problem"):
            ask(path, total, other)


def test_the_message_says_how_to_go_on_with_the_old_answers(path: Path) -> None:
    ask(path, total)
    with pytest.raises(JournalError, match="open it with") as caught:
        ask(path, product)
    said = str(caught.value).rpartition("problem=")[2].removesuffix(")")
    assert ask(path, product, problem=said.strip("'")) == 3.0


def test_a_problem_with_a_name_of_its_own(path: Path) -> None:
    """The name decides alone: it joins functions and tells them apart."""
    assert ask(path, total, problem="furnace 1") == ask(path, product, problem="furnace 1") == 3.0
    with pytest.raises(JournalError, match="answers the problem 'furnace 1', but this one is 'furnace 2'"):
        ask(path, total, problem="furnace 2")
    with pytest.raises(JournalError, match=r"'furnace 1', but this one is '.*\.total"):
        ask(path, total)


@pytest.mark.parametrize("problem", ["", 3])
def test_a_problem_is_a_text(path: Path, problem: Any) -> None:
    with pytest.raises(InvalidInputError, match="problem must be a text"):
        dz.QueryJournal(path, problem=problem)
    assert not path.exists()


def test_a_run_in_another_process_is_the_same_problem(tmp_path: Path) -> None:
    """A script that is started again replays, with another hash seed and moved by some lines, too."""
    script = tmp_path / "train.py"
    text = """
import concurrent.futures, pathlib, sys
import numpy as np
import deepzero as dz
import simulator

SCALES, CALLS, COUNT = {"a": 2.0, "b": {1.0, 3.0}}, [], 0

def fn(params):
    global COUNT
    COUNT += 1
    CALLS.append(COUNT)
    return SCALES["a"] * simulator.run(params["w"])

box = dz.BlackBox(fn, {"w": np.ones(2)})
with dz.QueryJournal(sys.argv[1]) as journal, concurrent.futures.ThreadPoolExecutor(1) as pool:
    print(float(dz.CGE(box, executor=pool, journal=journal).estimate().loss), len(CALLS))
"""
    module = tmp_path / "simulator.py"

    def run(seed: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-B", script, str(tmp_path / "queries.sqlite")],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    script.write_text(text)
    module.write_text("def run(w):\n    return w.sum()\n")
    assert run("1").stdout.split() == ["4.0", "3"]
    script.write_text("# a remark\n\n" + text)
    assert run("2").stdout.split() == ["4.0", "0"]


def test_the_black_box_as_the_journal_sees_it_is_the_same_from_step_to_step(path: Path) -> None:
    """Lists and counters that a black box writes into do not change which one it is."""
    calls: list[float] = []
    count = 0

    def fn(params: Any) -> float:
        nonlocal count
        count += 1
        calls.append(count)
        return total(params)

    for _ in range(2):
        ask(path, fn)
    assert count == 4


# What counts ---------------------------------------------------------------------------------------------------------------


def defined(text: str, **values: Any) -> Callable[..., Any]:
    """The function ``fn`` of a module of its own with this text."""
    module = types.ModuleType("problem_module")
    vars(module).update(values)
    exec(text, vars(module))
    fn: Callable[..., Any] = vars(module)["fn"]
    return fn


def same(a: Callable[..., Any], b: Callable[..., Any]) -> bool:
    return read_callable(a) == read_callable(b)


GLOBAL = "def fn(p):\n    return p * SCALE"


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (2.0, 3.0),
        (0.0, -0.0),
        (1, True),
        ("a", "b"),
        ((1, (2, 3)), (1, (2, 4))),
        ([1.0], [2.0]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (np.ones(3), np.zeros(3)),
        (np.ones(3), np.ones(3, dtype=np.float32)),
        (torch.ones(2), torch.zeros(2)),
        (total, product),
        (functools.partial(total, 1), functools.partial(total, 2)),
        (nn.ReLU(), nn.Tanh()),
        (np.sum, np.prod),
    ],
)
def test_values_of_globals_count(value: Any, other: Any) -> None:
    assert same(defined(GLOBAL, SCALE=value), defined(GLOBAL, SCALE=value))
    assert not same(defined(GLOBAL, SCALE=value), defined(GLOBAL, SCALE=other))


def test_a_global_that_the_function_does_not_name_does_not_count() -> None:
    assert same(defined(GLOBAL, SCALE=1, OTHER=1), defined(GLOBAL, SCALE=1, OTHER=2))


def test_a_variable_that_the_function_itself_assigns_does_not_count() -> None:
    count = 0

    def counted(p: float) -> float:
        nonlocal count
        count += 1
        return p

    text = "COUNT = 0\ndef fn(p):\n    global COUNT\n    COUNT += 1\n    return p"
    for fn in (counted, defined(text)):
        before = read_callable(fn)
        fn(1.0)
        assert read_callable(fn) == before


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("def fn(p):\n    return p * 2", "def fn(p):\n    return p * 3"),
        ("def fn(p):\n    return p + p", "def fn(p):\n    return p - p"),
        ("def fn(p):\n    return p.sum()", "def fn(p):\n    return p.max()"),
        ("def fn(p, s=1):\n    return p * s", "def fn(p, s=2):\n    return p * s"),
        ("def fn(p, *, s=1):\n    return p * s", "def fn(p, *, s=2):\n    return p * s"),
        ("def fn(p):\n    return [q * 2 for q in p]", "def fn(p):\n    return [q * 3 for q in p]"),
        ("fn = lambda p: (lambda q: q + 1)(p)", "fn = lambda p: (lambda q: q + 2)(p)"),
        (
            "def h(p):\n    return p\ndef fn(p):\n    return h(p)",
            "def h(p):\n    return -p\ndef fn(p):\n    return h(p)",
        ),
        (
            "class S:\n    k = 1\n    def run(self, p):\n        return p * self.k\ns = S()\ndef fn(p):\n    return s.run(p)",
            "class S:\n    k = 2\n    def run(self, p):\n        return p * self.k\ns = S()\ndef fn(p):\n    return s.run(p)",
        ),
    ],
)
def test_code_counts(text: str, other: str) -> None:
    assert same(defined(text), defined(text))
    assert same(defined(text), defined("\n\n# a remark\n" + text))
    assert not same(defined(text), defined(other))


def test_what_is_taken_from_a_module_of_one_s_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(simulator: str) -> Callable[..., Any]:
        module = types.ModuleType("own_simulator")
        module.__file__ = str(tmp_path / "own_simulator.py")
        exec(simulator, vars(module))
        monkeypatch.setitem(sys.modules, "own_simulator", module)
        return defined("def fn(p):\n    return sim.run(p)", sim=module)

    first = read_callable(importing("def run(p):\n    return 2 * p\ndef other(p):\n    return p"))
    assert read_callable(importing("def run(p):\n    return 2 * p\ndef other(p):\n    return -p")) == first
    assert read_callable(importing("def run(p):\n    return 3 * p\ndef other(p):\n    return p")) != first


class Simulator:
    """Attributes that only ``__init__`` sets are constants; what a call sets is state."""

    def __init__(self, viscosity: float) -> None:
        self.viscosity, self.calls = viscosity, 0

    def __call__(self, params: Any) -> float:
        self.calls += 1
        return self.viscosity * total(params)

    def run(self, params: Any) -> float:
        return self(params)


def test_objects_count_with_their_constants_but_not_with_their_state() -> None:
    used, fresh, other = Simulator(1.0), Simulator(1.0), Simulator(2.0)
    used(START)
    for name in ("__call__", "run"):
        assert same(getattr(used, name), getattr(fresh, name))
        assert not same(getattr(used, name), getattr(other, name))
    assert same(used, fresh)
    assert not same(used, other)
    assert not same(functools.partial(used), functools.partial(other))


def test_the_weights_of_a_module_do_not_count() -> None:
    """They are what the black box is a function of, or are drawn anew by every run."""

    def around(model: nn.Module) -> Callable[..., Any]:
        return lambda p: float(torch.func.functional_call(model, p, torch.ones(2)).sum())

    assert same(around(nn.Linear(2, 1)), around(nn.Linear(2, 1)))


def test_bytecode_that_was_run_often_counts_as_the_same() -> None:
    """Python specializes the instructions of a function that is called often."""
    fn, fresh = defined("def fn(p):\n    return p * 2 + len([p])"), defined("def fn(p):\n    return p * 2 + len([p])")
    for _ in range(5000):
        fn(1.5)
    assert same(fn, fresh)


def test_objects_that_refer_to_each_other() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    text = "def fn(p):\n    return SCALE and fn and p"
    assert same(defined(text, SCALE=loop), defined(text, SCALE=loop))


def test_a_bare_array_and_a_dict_of_it_are_different_problems() -> None:
    assert problem_of(dz.BlackBox(total, np.ones(3))) != problem_of(dz.BlackBox(total, {"x": np.ones(3)}))
    assert "total" in problem_of(dz.BlackBox(total, np.ones(3)))


def test_functions_that_python_does_not_show() -> None:
    for fn in (float, np.sum, functools.partial(boxes.rough, scale=2.0), boxes.Faulty({}), dz.query_key):
        assert problem_of(dz.BlackBox(fn, np.ones(1))) == problem_of(dz.BlackBox(fn, np.ones(1)))
