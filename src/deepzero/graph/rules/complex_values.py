"""Complex numbers: their parts, views and conjugates are linear over the reals.

Legend: entries: those that differ, with the dimension of perturbations in front.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float, Int64, Num
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, OneHot
from deepzero.graph.rules import formulas
from deepzero.graph.rules.base import map_delta, rule
from deepzero.graph.rules.frames import Moving, jointly
from deepzero.graph.rules.pointwise import product_change

aten = torch.ops.aten


def _physical(function: Any) -> Any:
    def apply(call: Call, x: Operand) -> Outcome:
        """The operation on the difference itself."""
        assert x.difference is not None
        return map_delta(x.difference, function)

    return apply


rule(aten._conj.default, aten.conj.default, aten._conj_physical.default, aten.conj_physical.default)(
    _physical(torch.conj_physical)
)
rule(aten._neg_view.default)(_physical(torch.neg))
rule(aten.resolve_conj.default, aten.resolve_neg.default)(_physical(lambda d: d))
rule(aten.real.default)(_physical(lambda d: d.real))
rule(aten.imag.default)(_physical(lambda d: d.imag if d.is_complex() else torch.zeros_like(d)))


@rule(aten.view_as_real.default)
def view_as_real(call: Call, x: Operand) -> Outcome:
    """Real and imaginary part in a last dimension; both of one entry may differ."""
    difference, shape = x.difference, call.output.base.shape
    if isinstance(difference, Channel):
        return Channel(difference.axis, difference.channels, _parts(difference.delta), shape)
    assert difference is not None
    return Dense(_parts(difference.dense()))


def _parts(delta: Num[Tensor, "*entries"]) -> Num[Tensor, "*entries 2"]:
    return torch.stack([delta.real, delta.imag if delta.is_complex() else torch.zeros_like(delta)], -1)


@rule(aten.view_as_complex.default)
def view_as_complex(call: Call, x: Operand) -> Outcome:
    """Real and imaginary part from a last dimension."""
    difference, shape = x.difference, call.output.base.shape
    if isinstance(difference, OneHot):
        values = _on_its_axis(difference.values, difference.indices % 2)
        return OneHot(difference.indices // 2, values, shape)
    if isinstance(difference, Channel):
        if difference.axis < len(shape):
            return Channel(difference.axis, difference.channels, torch.complex(*difference.delta.unbind(-1)), shape)
        part = difference.channels.reshape(-1, *(1 for _ in shape))
        return Dense(_on_its_axis(difference.delta, part))
    assert difference is not None
    return Dense(torch.complex(*difference.dense().unbind(-1)))


def _on_its_axis(delta: Float[Tensor, "*#entries"], part: Int64[Tensor, "*#entries"]) -> Complex[Tensor, "*#entries"]:
    """A real number on the real axis (part 0) or the imaginary one (part 1)."""
    return torch.complex(torch.where(part == 0, delta, 0), torch.where(part == 0, 0, delta))


@rule(aten.complex.default)
def complex_rule(call: Call, real: Operand, imag: Operand) -> Outcome:
    """``dx + i dy``."""

    def change(x: Moving, y: Moving) -> Tensor:
        dx, dy = (torch.zeros_like(b.delta) if a.delta is None else a.delta for a, b in ((x, y), (y, x)))
        return torch.complex(dx, dy)

    return jointly(call.output.base.shape, (real, imag), change)


@rule(aten.polar.default)
def polar(call: Call, size: Operand, angle: Operand) -> Outcome:
    """``r e^{it}``, its parts by the rules of products, cosine and sine."""

    def change(r: Moving, t: Moving) -> Tensor:
        cos = Moving(t.base.cos(), None if t.delta is None else formulas.cos(t.base, t.delta))
        sin = Moving(t.base.sin(), None if t.delta is None else formulas.sin(t.base, t.delta))
        return torch.complex(product_change(r, cos), product_change(r, sin))

    return jointly(call.output.base.shape, (size, angle), change)
