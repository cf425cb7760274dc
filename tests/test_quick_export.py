"""The shortcuts of the test session leave what is exported as it is."""

from __future__ import annotations

from typing import Any

import pytest
import quick_export
import torch
import torch.nn.functional as F
from conformance_suite import X, Y, network
from torch._subclasses import fake_impls
from torch.export import exported_program

import deepzero as dz
from deepzero.graph import decompositions
from deepzero.graph.capture import capture

pytestmark = pytest.mark.skipif(not quick_export.FITS, reason="this version of PyTorch has other names inside")


def digest() -> str:
    return capture(dz.NetworkObjective(network(), F.cross_entropy), (X, Y)).digest()


def test_a_program_is_exported_as_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported_program._collect_all_valid_cia_ops is quick_export.collect_at_once
    quick = digest()
    monkeypatch.setattr(exported_program, "_collect_all_valid_cia_ops", quick_export.collect)
    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", quick_export.override)
    assert digest() == quick


def tables(stand_ins: dict[Any, Any]) -> list[Any]:
    """What an export looks up for these operations: their kernels, and what fakes do."""
    return [(dict(op.py_kernels), fake_impls.op_implementations_dict.get(op)) for op in stand_ins]


def kinds(made: list[Any]) -> list[Any]:
    """The same without the identity of functions that are made anew."""
    return [({key: type(value) for key, value in kernels.items()}, fake is None) for kernels, fake in made]


def test_every_operation_is_overridden_and_put_back_as_by_pytorch() -> None:
    stand_ins, _ = exported_program._split_decomp_table_to_cia_and_python_decomp(decompositions.table())
    with quick_export.override(stand_ins):
        expected = kinds(tables(stand_ins))
    before = tables(stand_ins)
    for _ in range(2):  # made, and put in again
        with quick_export.override_at_once(stand_ins):
            assert kinds(tables(stand_ins)) == expected
            assert not any(op._dispatch_cache for op in stand_ins)
        assert tables(stand_ins) == before
    other = dict.fromkeys(stand_ins, torch.neg)
    with quick_export.override_at_once(other):
        assert {op.py_kernels[torch._C.DispatchKey.CompositeImplicitAutograd] for op in other} == {torch.neg}
    assert tables(stand_ins) == before


def test_an_operation_that_is_defined_later_is_found() -> None:
    before = quick_export.collect_at_once()
    with torch.library._scoped_library("deepzero_quick_export", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        found = quick_export.collect_at_once()
        assert found == quick_export.collect()
        assert found - before == {torch.ops.deepzero_quick_export.twice.default}
