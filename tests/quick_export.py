"""torch.export without work that it throws away: the tests export some thousand programs, and a quarter of each is this.

What is exported stays the same (`test_quick_export.py`): ``OperatorBase.py_impl``, called about 11,000 times an export, evaluates
annotations that nobody reads, and the composite operations of PyTorch are looked up once for every namespace of
operations, with the same outcome. Programs that tests start run on PyTorch as it is, and so do the tests under a version
of PyTorch that has not all of these names.
"""

from __future__ import annotations

from typing import Any

import torch._export.utils as export_utils
import torch._ops
from torch.export import exported_program

look_up = getattr(export_utils, "_materialize_cpp_cia_ops", None)
collect = getattr(export_utils, "_collect_all_valid_cia_ops", None)
FITS = (
    look_up is not None
    and collect is not None
    and getattr(exported_program, "_collect_all_valid_cia_ops", None) is collect
    and hasattr(torch._ops, "Callable")
)
"""Whether this version of PyTorch has what is replaced."""


class Unread:
    """In place of ``Callable`` in annotations that are evaluated with every call: a subscript takes no time."""

    def __getitem__(self, _: Any) -> Unread:
        return self

    def __instancecheck__(self, value: Any) -> bool:
        return callable(value)


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
    torch._ops.Callable = Unread()
    exported_program._collect_all_valid_cia_ops = collect_at_once
