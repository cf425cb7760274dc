"""Forward-mode derivatives of something that can only be queried: one difference along the tangent.

Where ``torch.func.jvp`` or ``torch.autograd.forward_ad`` bring tangents u to a black box, the tangent of its output is

.. math:: J u \\approx \\sum_k w_k \\frac{f(z + t_k h u) - f(z)}{h}

with the nodes t and weights w of the stencil: a call a node, however large the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deepzero.stencils import Stencil


def unpacked(values: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Values and their tangents; None where there is none."""
    pairs = [forward_ad.unpack_dual(value) for value in values]  # type: ignore[no-untyped-call]
    return [pair.primal for pair in pairs], [pair.tangent for pair in pairs]


def pushed_forward(
    call: Callable[[Sequence[Tensor]], Tensor],
    output: Tensor,
    values: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    stencil: Stencil,
    step_size: float | None,
    *,
    by_row: bool,
) -> Tensor:
    """The output, with its tangent.

    Args:
        call: values to the output.
        output: at ``values``.
        values: the point.
        tangents: the direction; None: a value stays.
        stencil: nodes along the direction.
        step_size: distance that the point moves at a node of 1; None: by dtype and size.
        by_row: every row has a step of its own, because no row of the output depends on another row; else one step
            for all.
    """
    moving = [(v, t) for v, t in zip(values, tangents, strict=True) if t is not None]
    first = 1 if by_row else 0
    points, along = (torch.cat([v.double().flatten(first) for v in part], dim=-1) for part in zip(*moving, strict=True))
    length = along.square().sum(-1).sqrt()
    if step_size is None:
        eps = max(float(torch.finfo(v.dtype).eps) for v, _ in moving)
        unit = eps ** (1 / (stencil.order + 1)) * math.sqrt(points.shape[-1])
        far = points.square().mean(-1).sqrt().clamp_min(1e-3) * unit
    else:
        far = torch.full_like(length, step_size)
    step = torch.where(length > 0, far / length.clamp_min(1e-300), 0.0)

    def shaped(like: Tensor) -> Tensor:
        return step.reshape(-1, *(1 for _ in like.shape[1:])) if by_row else step

    total = torch.zeros_like(output, dtype=torch.float64)
    for node, weight in zip(stencil.nodes, stencil.weights, strict=True):
        moved = [
            v if t is None else v + (node * shaped(v) * t.double()).to(v.dtype)
            for v, t in zip(values, tangents, strict=True)
        ]
        total = total + weight * (call(moved).double() - output.double())
    tangent = torch.where(shaped(output) > 0, total / shaped(output).clamp_min(1e-300), 0.0)
    dual: Tensor = forward_ad.make_dual(output, tangent.to(output.dtype))  # type: ignore[no-untyped-call]
    return dual
