"""The rule of a black box inside a network: one call for all perturbations and all samples that differ.

Where its rows depend on each other, or its own parameters move, it is one call a perturbation.

A black box tells values, not differences, so :math:`f(z + d) - f(z)` is a subtraction of its answers; before it and
after it differences are exact. A sample that a perturbation does not reach is not asked about.

Legend: p perturbations, b samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand
from deepzero.graph.differences import Dense, difference_dtype
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.frames import perturbed
from deepzero.operator import TARGET, stackable


@rule(TARGET)
def black_box(call: Call, handle: int, inputs: Sequence[Operand], parameters: Sequence[Operand]) -> Dense:
    """Answers at the perturbed values, minus the base output."""
    moving = [operand for operand in (*inputs, *parameters) if operand.difference is not None]
    assert moving[0].difference is not None
    count = moving[0].difference.count
    base: Tensor = call.output.base
    dtype = difference_dtype(base.dtype)
    apart = any(operand.difference is not None for operand in parameters)
    weights = [operand.base for operand in parameters]
    if apart or not stackable(handle, [operand.base for operand in inputs], weights, base):
        values = [_perturbed(operand, count) for operand in (*inputs, *parameters)]
        cut = len(inputs)
        answers = [TARGET(handle, [v[p] for v in values[:cut]], [v[p] for v in values[cut:]]) for p in range(count)]
        return Dense(torch.stack(answers).to(dtype) - base.to(dtype))
    deltas = [operand.difference.dense() for operand in moving if operand.difference is not None]
    reached = torch.stack([delta.flatten(2).ne(0).any(2) for delta in map(_with_entries, deltas)]).any(0)  # [p, b]
    out = torch.zeros((count, *base.shape), dtype=dtype, device=base.device)
    if bool(reached.any()):
        rows = [_perturbed(operand, count)[reached] for operand in inputs]
        answers = TARGET(handle, rows, weights)
        sample = reached.nonzero()[:, 1]
        out[reached] = answers.to(dtype) - base.to(dtype)[sample]
    return Dense(out)


def _with_entries(delta: Tensor) -> Tensor:
    """``[p, b, ...]`` with a dimension of entries, if samples are single numbers."""
    return delta.unsqueeze(2) if delta.dim() == 2 else delta


def _perturbed(operand: Operand, count: int) -> Tensor:
    """``z + d`` for each perturbation, ``[p, *shape]``, in the dtype of z."""
    if operand.difference is None:
        return operand.base.expand(count, *operand.base.shape)
    return perturbed(operand.base, operand.difference.dense()).to(operand.base.dtype)
