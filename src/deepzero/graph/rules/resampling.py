"""Images and signals on another grid. Linear in the values, so the same operation acts on the difference.

Each channel is resampled on its own, so a channel difference stays on its channel.

Legend: p perturbations, b samples, c channels, grid: sizes of the spatial dimensions; a stack ``[p, b, c, *grid]`` goes
through as ``[p * b, c, *grid]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero.graph.calls import Call, Operand, Outcome
from deepzero.graph.differences import Channel, Dense, Difference, fold, unfold_count
from deepzero.graph.rules.base import rule
from deepzero.graph.rules.fallback import fallback

aten = torch.ops.aten


def by_image(difference: Difference, function: Callable[[Tensor], Tensor], shape: torch.Size) -> Difference:
    """A linear function of ``[samples, channels, *grid]`` that treats samples and channels alike and apart.

    Perturbations become samples; of a channel difference, the samples become channels, which need no copy.
    """
    if isinstance(difference, Channel) and difference.axis in (0, 1):
        return Channel(difference.axis, difference.channels, function(difference.delta), shape)
    return Dense(unfold_count(function(fold(difference.dense())), difference.count))


def _resampled(call: Call, x: Operand, *args: Any, **kwargs: Any) -> Outcome:
    """The resampled difference."""
    assert x.difference is not None
    return by_image(x.difference, lambda d: call.node.target(d, *args, **kwargs), call.output.base.shape)


for _name in (
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
):
    rule(getattr(aten, _name).default, getattr(aten, _name).vec)(_resampled)


@rule(aten.grid_sampler.default)
def grid_sampler(call: Call, x: Operand, grid: Operand, *options: Any) -> Outcome:
    """Linear in the image; a grid that differs is evaluated at both places."""
    if x.difference is None or grid.difference is not None:
        return fallback(call, x, grid, *options)
    difference, shape = x.difference, call.output.base.shape
    if isinstance(difference, Channel) and difference.axis == 1:
        stacked = difference.delta.movedim(0, 1)
        return Channel(1, difference.channels, call.node.target(stacked, grid.base, *options).movedim(1, 0), shape)
    beside = difference.dense().movedim(0, 1)
    out = call.node.target(beside.flatten(1, 2), grid.base, *options)
    return Dense(out.unflatten(1, beside.shape[1:3]).movedim(1, 0))


@rule(aten.affine_grid_generator.default)
def affine_grid(call: Call, theta: Operand, size: Sequence[int], align_corners: bool) -> Outcome:
    """Coordinates times theta: linear."""
    assert theta.difference is not None
    dense = theta.difference.dense()
    every = [dense.shape[0] * size[0], *size[1:]]
    return Dense(unfold_count(call.node.target(fold(dense), every, align_corners), dense.shape[0]))
