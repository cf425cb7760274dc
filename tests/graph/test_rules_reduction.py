"""Sums, means, maxima, softmax; and operations whose values are booleans or integers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups
from torch import nn

REDUCTIONS: dict[str, Op] = {
    "mean": lambda z: z.mean().tanh(),
    "sum": lambda z: z.sum().tanh(),
    "mean_space": lambda z: z.mean((2, 3)),
    "mean_space_keep": lambda z: z.mean((2, 3), keepdim=True).square(),
    "mean_channel": lambda z: z.mean(1),
    "mean_batch": lambda z: z.mean(0),
    "mean_negative": lambda z: z.mean((-1, 0)),
    "sum_channel_keep": lambda z: z.sum(1, keepdim=True),
    "sum_some": lambda z: z.sum((0, 2)),
    "sum_none": lambda z: z.sum(dim=()),
    "sum_dtype": lambda z: z.sum(2, dtype=torch.float64),
    "var": lambda z: z.var((2, 3)),
    "std": lambda z: z.std(1),
    "norm": lambda z: z.norm(dim=1),
    "vector_norm": lambda z: torch.linalg.vector_norm(z, dim=(2, 3)),
    "normalize": lambda z: F.normalize(z, dim=1),
    "amax": lambda z: z.amax((2, 3)),
    "max_all": lambda z: z.max(),
    "max_dim": lambda z: z.max(1).values,
    "max_with_indices": lambda z: z.max(1).values * (1 + z.max(1).indices),
    "min_dim": lambda z: z.min(2)[0],
    "argmax": lambda z: z.argmax(1) + z.mean(1),
    "sort": lambda z: z.sort(1).values,
    "sort_indices": lambda z: z.sort(1).indices + z,
    "topk": lambda z: z.topk(2, 1).values,
    "median": lambda z: z.median(2).values,
    "cumsum": lambda z: z.cumsum(2),
    "cumprod": lambda z: z.cumprod(1),
    "prod": lambda z: z.prod(1),
    "logsumexp": lambda z: z.logsumexp(1),
    "softmax_channel": lambda z: z.softmax(1),
    "softmax_last": lambda z: z.softmax(-1),
    "softmax_dtype": lambda z: z.softmax(1, dtype=torch.float64),
    "log_softmax_channel": lambda z: z.log_softmax(1),
    "log_softmax_last": lambda z: z.log_softmax(-1),
    "log_softmax_module": nn.LogSoftmax(2),
    "softmin": lambda z: F.softmin(z, 1),
    "glu": lambda z: F.glu(z, 1),
}


@pytest.mark.parametrize("ops", groups(REDUCTIONS))
def test_reduction(ops: dict[str, Op]) -> None:
    check_each(ops)


DISCRETE: dict[str, Op] = {
    "bool_to_number": lambda z: (z > 0.1).to(z.dtype) + z,
    "bool_product": lambda z: (z > 0) * (z < 0.5) + 0 * z,
    "bool_sum": lambda z: ((z > 0) + (z < 0.5)).to(z.dtype) + z,
    "bool_and": lambda z: ((z > 0) & (z < 0.5)).to(z.dtype) + z,
    "bool_or": lambda z: ((z > 0.8) | (z < 0.5)).to(z.dtype) + z,
    "bool_not": lambda z: (~(z > 0)).to(z.dtype) + z,
    "bool_times_number": lambda z: (z > 0) * z,
    "bool_count": lambda z: (z > 0).sum((2, 3)) + z.mean((2, 3)),
    "bool_mean": lambda z: (z > 0).double().mean() * z,
    "bool_cat": lambda z: torch.cat([z > 0, z < 0.3], 1).to(z.dtype) + z.repeat(1, 2, 1, 1),
    "bool_slice": lambda z: (z > 0)[:, 1:, ::2].to(z.dtype) + z[:, 1:, ::2],
    "bool_any": lambda z: (z > 0.9).any(1) * z.mean(1),
    "int_arithmetic": lambda z: (2 * torch.round(4 * z).long() - 3) / 2 + z,
    "int_square": lambda z: torch.round(4 * z).long() ** 2 + z,
    "int_shift": lambda z: (torch.round(4 * z).int() // 2) + z,
    "int_sum": lambda z: torch.round(4 * z).long().sum(1) + z.mean(1),
    "one_hot": lambda z: F.one_hot(z.argmax(1), 4).to(z.dtype) + z.mean((0, 1, 2, 3)),
    "index_by_argmax": lambda z: z.gather(1, z.argmax(1, keepdim=True)),
    "hard_quantize": lambda z: torch.round(z / 0.25).clamp(-4, 3) * 0.25 + 0 * z,
    "straight_through": lambda z: z + (torch.sign(z) - z).detach(),
}


@pytest.mark.parametrize("ops", groups(DISCRETE))
def test_discrete_intermediate_values(ops: dict[str, Op]) -> None:
    check_each(ops, scale=3.0)
