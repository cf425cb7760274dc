"""torch.export without work that it throws away: the tests export some thousand programs, and half of each is this.

What is exported stays the same, down to where every operation comes from (`test_quick_export.py`). Left out are:

- the search for the composite operations of PyTorch, which come out the same each time;
- some 11,000 calls that write the same kernels into the tables of these operations;
- the Python code of every graph on the way, which hardly any is asked for: it is written when it is;
- the frames of pytest and of this package below the program's own, in the stack of every operation;
- the states of random generators of GPUs.

Programs that tests start run on PyTorch as it is, and so do the tests under a version of PyTorch that has not all of
these names.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
import torch._export.utils as export_utils
from torch._decomp import decompositions_for_rng
from torch._subclasses import fake_impls
from torch.export import exported_program
from torch.fx import graph_module, proxy

look_up = getattr(export_utils, "_materialize_cpp_cia_ops", None)
collect = getattr(export_utils, "_collect_all_valid_cia_ops", None)
override = getattr(exported_program, "_override_composite_implicit_decomp", None)
rules_of_fakes = getattr(fake_impls, "op_implementations_dict", None)
recompile = getattr(graph_module.GraphModule, "recompile", None)
codegen_with_trees = getattr(graph_module, "_PyTreeCodeGen", None)
filter_frames = getattr(proxy.TracerBase, "_filter_traceback_frames", None)
captured = getattr(proxy, "CapturedTraceback", None)
FITS = (
    look_up is not None
    and collect is not None
    and override is not None
    and rules_of_fakes is not None
    and recompile is not None
    and codegen_with_trees is not None
    and filter_frames is not None
    and captured is not None
    and hasattr(decompositions_for_rng, "PhiloxState")
    and getattr(exported_program, "_collect_all_valid_cia_ops", None) is collect
)
"""Whether this version of PyTorch has what is replaced."""


@dataclass(frozen=True)
class Overridden:
    """What PyTorch makes of an operation while a program is exported: its kernels before and after, its rule for fakes."""

    operation: Any
    before: dict[Any, Any]
    after: dict[Any, Any]
    fake: Any


known: dict[frozenset[tuple[Any, Callable[..., Any]]], list[Overridden]] = {}
"""Operations with what stands in for them -> what PyTorch made of them before."""


@contextmanager
def override_at_once(stand_ins: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """``_override_composite_implicit_decomp``, which makes the kernels of operations once and then puts them in again."""
    assert override is not None
    assert rules_of_fakes is not None
    asked = frozenset(stand_ins.items())
    made = known.get(asked)
    if made is None or any(one.operation.py_kernels != one.before for one in made):
        before = {op: dict(op.py_kernels) for op in stand_ins}
        with override(stand_ins):
            known[asked] = [Overridden(op, before[op], dict(op.py_kernels), rules_of_fakes.get(op)) for op in stand_ins]
            yield
        return
    before = [one.operation.py_kernels for one in made]
    for one in made:
        one.operation.py_kernels = dict(one.after)
        one.operation._dispatch_cache.clear()
        rules_of_fakes.setdefault(one.operation, one.fake)
    try:
        yield
    finally:
        for one, kernels in zip(made, before, strict=True):
            one.operation.py_kernels = kernels
            one.operation._dispatch_cache.clear()
            rules_of_fakes.pop(one.operation, None)


@functools.cache
def composite_operations(registered: tuple[str, ...], namespaces: tuple[str, ...]) -> Any:
    """What PyTorch finds, for as long as the same operations are registered."""
    assert look_up is not None
    assert collect is not None
    look_up()
    export_utils._materialize_cpp_cia_ops = lambda: None
    try:
        return collect()
    finally:
        export_utils._materialize_cpp_cia_ops = look_up


def collect_at_once() -> Any:
    """``_collect_all_valid_cia_ops``, which looks again when an operation was defined."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    return set(composite_operations(tuple(registered), tuple(torch.ops._dir)))


WRITTEN = ("forward", "_code", "_lineno_map", "_prologue_start")
"""Attributes that a graph module has of its code."""


class OfCode:
    """An attribute of a graph module that is made together with its code, when it is first asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, kind: Any = None) -> Any:
        if module is None or not isinstance(vars(type(module)).get("forward"), OfCode):
            raise AttributeError(self.name)
        del type(module).forward
        write(module)
        return getattr(module, self.name)


class CodeLater:
    """What ``recompile`` returns."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(write(self.module), name)


def write(module: Any) -> Any:
    """The code of a graph module as it is now."""
    assert recompile is not None
    return recompile(module)


def recompile_when_asked(module: Any) -> Any:
    """``GraphModule.recompile``, which leaves the code to those who ask for it."""
    assert codegen_with_trees is not None
    if isinstance(module._graph._codegen, codegen_with_trees):
        trees = module._graph._codegen.pytree_info
        module._in_spec, module._out_spec = trees.in_spec, trees.out_spec
    for name in WRITTEN:
        vars(module).pop(name, None)
    type(module).forward = OfCode("forward")
    return CodeLater(module)


class Stack:
    """``CapturedTraceback`` of Python's frames, whose lines of source are looked up once."""

    def __init__(self, frames: list[tuple[CodeType, int]]) -> None:
        self.frames = frames

    @classmethod
    def extract(cls) -> Stack:
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            frames.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return cls(frames)

    def summary(self) -> traceback.StackSummary:
        """From the outermost frame to the innermost."""
        found = traceback.StackSummary()
        found.extend(line_of(code, line) for code, line in reversed(self.frames))
        return found


@functools.cache
def line_of(code: CodeType, line: int) -> traceback.FrameSummary:
    return traceback.FrameSummary(code.co_filename, line, code.co_name)


NOTHING = torch.tensor(())


def without_states(philox: Any) -> None:
    """``PhiloxState.reset``: before a GPU draws, its state is an empty tensor, of which one is enough."""
    philox.seed = philox.base_offset = NOTHING
    philox.relative_offset = 0
    philox.offset_advanced_at_least_once = False


REPLACED = [
    (exported_program, "_collect_all_valid_cia_ops", collect_at_once),
    (exported_program, "_override_composite_implicit_decomp", override_at_once),
    (graph_module.GraphModule, "recompile", recompile_when_asked),
    *((graph_module.GraphModule, name, OfCode(name)) for name in WRITTEN[1:]),
    (proxy, "CapturedTraceback", Stack),
    (decompositions_for_rng.PhiloxState, "reset", without_states),
]
"""Object, name, and what stands there while tests run."""

ORIGINALS = [(place, name, vars(place).get(name)) for place, name, _ in REPLACED]
"""The same before; nothing where PyTorch has no such attribute."""


def install() -> None:
    if not FITS:
        return
    for place, name, stand_in in REPLACED:
        setattr(place, name, stand_in)
