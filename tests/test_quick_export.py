"""The shortcuts of the test session leave what is exported as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import quick_export
import torch
import torch.nn.functional as F
from conformance_suite import X, Y, network
from torch.export import exported_program

import deepzero as dz
from deepzero.graph.capture import capture

pytestmark = pytest.mark.skipif(not quick_export.FITS, reason="this version of PyTorch has other names inside")


def digest() -> str:
    return capture(dz.NetworkObjective(network(), F.cross_entropy), (X, Y)).digest()


def test_a_program_is_exported_as_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported_program._collect_all_valid_cia_ops is quick_export.collect_at_once
    quick = digest()
    monkeypatch.setattr(torch._ops, "Callable", Callable)
    monkeypatch.setattr(exported_program, "_collect_all_valid_cia_ops", quick_export.collect)
    assert digest() == quick


def test_an_operation_that_is_defined_later_is_found() -> None:
    before = quick_export.collect_at_once()
    with torch.library._scoped_library("deepzero_quick_export", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        found = quick_export.collect_at_once()
        assert found == quick_export.collect()
        assert found - before == {torch.ops.deepzero_quick_export.twice.default}
