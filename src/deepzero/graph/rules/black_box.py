"""The rule of a black box inside a network: one call for all perturbations and all samples that differ.

Where its rows depend on each other, or its own parameters move, it is one call a perturbation.

A black box tells values, not differences, so :math:`f(z + d) - f(z)` is a subtraction of its answers; before it and
after it differences are exact. A sample that a perturbation does not reach is not asked about.

Legend: p perturbations, b samples; rows: samples of perturbations, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Num, Shaped
from torch import Tensor

from deepzero.graph.calls import Call, Operand
from deepzero.graph.differences import Channel, Dense, Difference, difference_dtype
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.frames import perturbed
from deepzero.operator import TARGET, in_perturbation, perturbed_query, stackable


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
        outputs = []
        for p in range(count):
            with perturbed_query(), in_perturbation(lambda _, p=p: p):  # type: ignore[misc]
                outputs.append(TARGET(handle, [v[p] for v in values[:cut]], [v[p] for v in values[cut:]]))
        return Dense(torch.stack(outputs).to(dtype) - base.to(dtype))
    reached = torch.stack([_reaches(operand.difference) for operand in moving if operand.difference]).any(0)  # [p, b]
    if bool(reached.all()):
        everything = [_perturbed(operand, count).flatten(0, 1) for operand in inputs]
        answers = _answers(handle, everything, weights, reached).to(dtype)
        return Dense(answers.reshape(count, *base.shape) - base.to(dtype))
    out = torch.zeros((count, *base.shape), dtype=dtype, device=base.device)
    if bool(reached.any()):
        rows = [_perturbed(operand, count)[reached] for operand in inputs]
        answers = _answers(handle, rows, weights, reached)
        sample = reached.nonzero()[:, 1]
        out[reached] = answers.to(dtype) - base.to(dtype)[sample]
    return Dense(out)


def _answers(
    handle: int, rows: Sequence[Tensor], weights: Sequence[Tensor], reached: Bool[Tensor, "p b"]
) -> Num[Tensor, "rows ..."]:
    """Answers for all rows in one call."""
    with perturbed_query(), in_perturbation(lambda row: int(reached.nonzero()[row, 0])):
        return TARGET(handle, list(rows), list(weights))  # type: ignore[no-any-return]


def _reaches(difference: Difference) -> Bool[Tensor, "p b"]:
    """True where a perturbation moves a sample."""
    channel = isinstance(difference, Channel) and difference.axis > 0
    delta = difference.delta if channel else difference.dense()  # type: ignore[union-attr]
    return (delta.unsqueeze(2) if delta.dim() == 2 else delta).flatten(2).ne(0).any(2)


def _perturbed(operand: Operand, count: int) -> Shaped[Tensor, "{count} ..."]:
    """``z + d`` for each perturbation, in the dtype of z."""
    base, difference = operand.base, operand.difference
    rows = base.expand(count, *base.shape)
    if difference is None:
        return rows
    if isinstance(difference, Channel) and base.is_floating_point():  # all but a channel is only copied
        rows = rows.clone()
        for channel, start, stop in difference.runs:
            moved = perturbed(base.select(difference.axis, channel), difference.delta[start:stop])
            rows[start:stop].select(difference.axis + 1, channel).copy_(moved)
        return rows
    return perturbed(base, difference.dense()).to(base.dtype)
