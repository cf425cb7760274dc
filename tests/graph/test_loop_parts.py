"""A part of a compiled loop has machine code in the loops that call it, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from deepzero.graph.cpu.compilation import borrowing
from deepzero.graph.cpu.loop_parts import part

VALUES = np.arange(5.0)


@part
def squared(x: Any, i: int) -> Any:
    return x[i] * x[i]


@part
def squared_below(x: Any, i: int) -> Any:
    found = squared(x, i)
    return squared_below(x, i - 1) + found if i else found  # calls itself, so that no loop can take it in


def sum_of_squares(x: Any) -> float:
    return squared_below(x, x.size - 1)


def difference_of_squares(x: Any) -> float:
    return squared(x, x.size - 1) - squared(x, 0)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loops_have_their_parts_in_them_also_where_they_are_kept(dtype: Any) -> None:
    values = VALUES.astype(dtype)
    for hits in (0, 1):
        for function, expected in ((sum_of_squares, 30.0), (difference_of_squares, 16.0)):
            loop = borrowing(function)
            assert loop(values) == expected
            assert sum(loop.stats.cache_hits.values()) == hits


def test_a_part_has_no_machine_code_of_its_own() -> None:
    loop = borrowing(difference_of_squares)
    loop(VALUES)
    own, whole = (next(iter(some.overloads.values())) for some in (squared, loop))
    engine = whole.library.codegen._engine
    assert engine.get_function_address(whole.fndesc.mangled_name)
    assert not engine.is_symbol_defined(own.fndesc.mangled_name)
