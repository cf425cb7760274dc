"""torch.export without work that it throws away: the tests export some thousand programs, and a third of each is this.

What is exported stays the same (`test_quick_export.py`). The composite operations of PyTorch are looked up once for every
namespace of operations, with the same outcome; and every export writes the same kernels into the tables of some 500 of
them, with about 11,000 calls, and takes them out again. Programs that tests start run on PyTorch as it is, and so do the
tests under a version of PyTorch that has not all of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch._export.utils as export_utils
from torch._subclasses import fake_impls
from torch.export import exported_program

look_up = getattr(export_utils, "_materialize_cpp_cia_ops", None)
collect = getattr(export_utils, "_collect_all_valid_cia_ops", None)
override = getattr(exported_program, "_override_composite_implicit_decomp", None)
rules_of_fakes = getattr(fake_impls, "op_implementations_dict", None)
FITS = (
    look_up is not None
    and collect is not None
    and override is not None
    and rules_of_fakes is not None
    and getattr(exported_program, "_collect_all_valid_cia_ops", None) is collect
)
"""Whether this version of PyTorch has what is replaced."""


@dataclass(frozen=True)
class Overridden:
    """What PyTorch makes of an operation while a program is exported: its kernels before and after, its rule for fakes."""

    before: dict[Any, Any]
    after: dict[Any, Any]
    fake: Any


known: dict[tuple[Any, Callable[..., Any]], Overridden] = {}
"""Operation and what stands in for it -> what PyTorch made of it before."""


@contextmanager
def override_at_once(stand_ins: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """``_override_composite_implicit_decomp``, which makes the kernels of an operation once and then puts them in again."""
    assert override is not None
    assert rules_of_fakes is not None
    before = {operation: operation.py_kernels for operation in stand_ins}
    new = {op: own for op, own in stand_ins.items() if (op, own) not in known or known[op, own].before != before[op]}
    copies = {op: dict(before[op]) for op in new}
    with override(new):
        for op, own in new.items():
            known[op, own] = Overridden(copies[op], dict(op.py_kernels), rules_of_fakes.get(op))
        again = {op: known[op, own] for op, own in stand_ins.items() if op not in new}
        for op, made in again.items():
            op.py_kernels = dict(made.after)
            op._dispatch_cache.clear()
            rules_of_fakes.setdefault(op, made.fake)
        try:
            yield
        finally:
            for op in again:
                op.py_kernels = before[op]
                op._dispatch_cache.clear()
                rules_of_fakes.pop(op, None)


def collect_at_once() -> Any:
    """``_collect_all_valid_cia_ops``, which asks for the operations once instead of for each namespace."""
    assert look_up is not None
    assert collect is not None
    look_up()
    export_utils._materialize_cpp_cia_ops = lambda: None
    try:
        return collect()
    finally:
        export_utils._materialize_cpp_cia_ops = look_up


def install() -> None:
    if not FITS:
        return
    exported_program._collect_all_valid_cia_ops = collect_at_once
    exported_program._override_composite_implicit_decomp = override_at_once
