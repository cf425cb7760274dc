"""The shortcuts of the test session leave what is exported as it is."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import quick_export
import torch
import torch.nn.functional as F
from conformance_suite import X, Y, network
from oracle import initialize
from torch import Tensor, fx, nn
from torch._export import utils as export_utils
from torch._subclasses import fake_impls
from torch.export import exported_program

import deepzero as dz
from deepzero.graph import decompositions
from deepzero.graph.capture import capture

pytestmark = pytest.mark.skipif(not quick_export.FITS, reason="this version of PyTorch has other names inside")


@contextmanager
def as_it_is() -> Iterator[None]:
    """PyTorch without the shortcuts."""
    before = [(place, name, vars(place)[name]) for place, name, _ in quick_export.REPLACED]
    for place, name, original in quick_export.ORIGINALS:
        if original is None:
            delattr(place, name)
        else:
            setattr(place, name, original)
    try:
        yield
    finally:
        for place, name, stand_in in before:
            setattr(place, name, stand_in)


class Norm(nn.Module):
    """A composite operation, one that is taken apart, a constant, a branch on the mode, random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = torch.einsum("bchw,c->bhwc", x, torch.arange(1.0, 4, dtype=x.dtype)).movedim(-1, 1)
        return F.dropout(F.instance_norm(scaled), 0.5) if self.training else scaled


def programs() -> dict[str, tuple[dz.NetworkObjective, tuple[Any, ...]]]:
    mixed = initialize(nn.Sequential(nn.Conv2d(2, 3, 3), Norm(), nn.Flatten(), nn.GRU(27, 4)))
    return {
        "network": (dz.NetworkObjective(network(), F.cross_entropy), (X, Y)),
        "mixed": (dz.NetworkObjective(mixed, lambda output, target: output[0].square().mean()), (X, Y)),
    }


def told(name: str) -> tuple[str, list[str]]:
    """A program's operations and constants, and where each operation comes from."""
    graph = capture(*programs()[name])
    return graph.digest(), [node.source for node in graph.nodes]


@pytest.mark.parametrize("name", programs())
def test_a_program_is_exported_as_without_them(name: str) -> None:
    for place, attribute, stand_in in quick_export.REPLACED:
        assert vars(place)[attribute] is stand_in
    quick = told(name)
    again = told(name)
    with as_it_is():
        expected = told(name)
    assert quick == expected
    assert again == expected
    assert all("File" in source for source in quick[1])


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(network().eval(), (X,), strict=False)


def test_the_code_of_a_graph_is_there_when_it_is_asked_for() -> None:
    quick = exported()
    with as_it_is():
        expected = exported()
    assert quick.graph_module.code == expected.graph_module.code
    assert inspect.signature(quick.module().forward) == inspect.signature(expected.module().forward)
    torch.testing.assert_close(quick.module()(X), expected.module()(X), rtol=0, atol=0)
    assert str(quick) == str(expected)
    for program in (quick, expected):
        copied = copy.deepcopy(program.graph_module)
        assert copied.code == program.graph_module.code


def test_the_code_of_a_graph_is_that_of_its_last_change() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Tanh()))
    assert "self.1" in module.code.replace('getattr(self, "1")', "self.1")
    x = torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(module(x), x.relu().tanh())
    output = module.graph.output_node()
    output.args = (output.args[0].args[0],)
    module.graph.eliminate_dead_code()
    written = module.recompile()
    assert "self.1" not in module.code.replace('getattr(self, "1")', "self.1")
    assert written.src == module.code
    torch.testing.assert_close(module(x), x.relu())
    kept = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(kept(x), x.relu())


def test_a_module_without_code_has_none() -> None:
    with pytest.raises(AttributeError, match="_code"):
        _ = object.__new__(fx.GraphModule)._code


def innermost(of: Any) -> list[tuple[str, int | None, str, str | None]]:
    return [(frame.filename, frame.lineno, frame.name, frame.line) for frame in of.extract().summary()]


def test_a_stack_is_that_of_pytorch() -> None:
    quick, expected = [innermost(of) for of in (quick_export.Stack, quick_export.captured)]
    assert quick == expected
    assert quick[-1][2] == "innermost"


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
    left = export_utils._special_op_to_preserve_cia
    assert not any(left in kernels.values() for kernels, _ in before), "an export before this test left its kernels"
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
