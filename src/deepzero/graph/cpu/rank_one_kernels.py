"""Kernels for rank-one differences on a CPU, in float32 and float64.

Legend: p perturbations, g groups, m rows of a base value, n entries of a row, r and s rows given in full.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LANES = 32
"""Extremes that a compiled loop keeps side by side."""


@cache
def compiled() -> Any:
    """The compiled loops, imported with numba where a kernel first runs."""
    from deepzero.graph.cpu import rank_one_loops as loops  # noqa: PLC0415 - numba is slow to import, and many networks need none

    return loops


def applies(*tensors: Tensor) -> bool:
    """True if the compiled loops take these tensors together."""
    dtypes = {t.dtype for t in tensors}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}


def arrays(*tensors: Tensor) -> list[Any]:
    """Arrays in contiguous memory: a loop is compiled once for each layout of its arguments."""
    return [t.contiguous().numpy() for t in tensors]


def behind_kink(
    directions: Float[Tensor, " g #m n"], base: Float[Tensor, "m n"], negative_slope: float
) -> tuple[Float[Tensor, "g m n"], Float[Tensor, "2 g m"]] | None:
    """One pass over the directions."""
    if not applies(directions, base):
        return None
    count, (rows, width) = len(directions), base.shape
    out, rates = base.new_empty(count, rows, width), base.new_empty(2, count, rows)
    given = arrays(directions, base, out, rates, base.new_empty(3, LANES))
    compiled().behind_kink(*given, rates.numpy().dtype.type(negative_slope))
    return out, rates


def rows_that_cross(
    coefficients: Float[Tensor, "p m"], groups: Int64[Tensor, " p"], rates: Float[Tensor, "2 g m"]
) -> tuple[Float[Tensor, "p m"], Int64[Tensor, " r"]] | None:
    """One pass over the coefficients."""
    if not applies(coefficients, rates):
        return None
    straight = torch.empty_like(coefficients, memory_format=torch.contiguous_format)
    places = torch.empty(coefficients.numel() + 1, dtype=torch.int64)  # the last is written, and not counted
    found = compiled().rows_that_cross(*arrays(coefficients, groups, rates, straight, places))
    return straight, places[:found]


def rectified_rows(
    coefficients: Float[Tensor, "p m"],
    directions: Float[Tensor, " g #m n"],
    groups: Int64[Tensor, " p"],
    places: Int64[Tensor, " r"],
    base: Float[Tensor, "m n"],
    given: tuple[Int64[Tensor, " s"], Float[Tensor, "s n"]] | None,
    negative_slope: float,
) -> Float[Tensor, "all n"] | None:
    """One pass over the rows."""
    if not applies(coefficients, directions, base):
        return None
    places_given, rows = (places[:0], base[:0]) if given is None else given
    out = base.new_empty(len(places) + len(places_given), base.shape[1])
    loop = compiled().rectified_rows
    slope = base.numpy().dtype.type(negative_slope)
    loop(*arrays(coefficients, directions, groups, places, base, places_given, rows), slope, out.numpy())
    return out
