"""Parts of compiled loops: numba finds their types once, LLVM sees them in the loops that they are linked into alone.

By itself numba makes of every function that a loop calls a library of its own: optimised, turned into machine code, and
optimised again in each caller. Nobody calls a part from Python, so its machine code would be of no use; and a loop is
optimised as a whole, with all its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from deepzero.graph.cpu.compilation import OPTIONS


def part(function: Callable[..., Any]) -> Any:
    """A part of a loop that makes no arrays, compiled with it; it cannot be called from Python."""
    unused = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(pipeline_class=_PartCompiler, **unused, **OPTIONS)(function)


class _PartCompiler(Compiler):  # type: ignore[misc]
    """numba's compiler, whose result is a :class:`_PartLibrary`."""

    def __init__(self, typing: Any, target: Any, library: Any, *more: Any) -> None:
        super().__init__(typing, target, library or _PartLibrary(target.codegen(), "part"), *more)


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code as it is written down first, to be linked into that of loops."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Loops do."""

    def _finalize_final_module(self) -> None:
        """Without machine code."""
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0, as of a function that there is no machine code of."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> _NoEnvironment:
        """The receiver of the Python objects that code needs."""
        return _NoEnvironment()


class _NoEnvironment:
    """Takes the place that machine code has for Python objects: a part needs none."""

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing is kept."""
