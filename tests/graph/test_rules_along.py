"""Every rule that works along dimensions by itself: sums, moments, norms, extrema, products, softmax."""

from __future__ import annotations

import pytest
import torch
from every_kind import groups
from oracle import normal
from rule_cases import SHAPE, Case, Differs, aten, check_table

Z = normal(*SHAPE, seed=1)
INTEGERS = (3 * Z).round().long()
MASK = Z > 0.3
MASKED = Z.masked_fill(normal(*SHAPE, seed=2) > 0.8, -torch.inf)
COMPLEX = torch.complex(Z, normal(*SHAPE, seed=5))
EMPTY = torch.zeros(2, 0, 3, dtype=torch.float64)


def over(target: object, *options: object, base: torch.Tensor = Z, single: bool = True, **named: object) -> Case:
    return Case(target, (Differs(base), *options), dict(named), single=single)


SUMS = {
    "sum": over(aten.sum.default),
    "sum_dtype": over(aten.sum.default, dtype=torch.float64),
    "sum_integers": over(aten.sum.default, base=INTEGERS),
    "sum_bools": over(aten.sum.default, base=MASK),
    "sum_complex": over(aten.sum.default, base=COMPLEX),
    "sum_truncated": over(aten.sum.default, base=3 * Z, dtype=torch.int64),
    "sum_dim": over(aten.sum.dim_IntList, [1, -1]),
    "sum_keep": over(aten.sum.dim_IntList, [2], True),
    "sum_all_dims": over(aten.sum.dim_IntList, []),
    "sum_none": over(aten.sum.dim_IntList, None),
    "sum_dim_bools": over(aten.sum.dim_IntList, [1], base=MASK),
    "sum_dim_dtype": over(aten.sum.dim_IntList, [1], dtype=torch.float64),
    "sum_dim_truncated": over(aten.sum.dim_IntList, [1], base=3 * Z, dtype=torch.int64),
    "mean": over(aten.mean.default),
    "mean_integers": over(aten.mean.default, base=INTEGERS, dtype=torch.float64),
    "mean_dim": over(aten.mean.dim, [0, 2]),
    "mean_keep": over(aten.mean.dim, [-1], True),
    "mean_dim_bools": over(aten.mean.dim, [1], base=MASK, dtype=torch.float64),
    "mean_complex": over(aten.mean.dim, [1], base=COMPLEX),
    "cumsum": over(aten.cumsum.default, 2),
    "cumsum_negative": over(aten.cumsum.default, -3),
    "cumsum_bools": over(aten.cumsum.default, 1, base=MASK),
    "prod": over(aten.prod.default),
    "prod_dim": over(aten.prod.dim_int, 3),
    "prod_keep": over(aten.prod.dim_int, 1, True),
    "prod_integers": over(aten.prod.dim_int, 1, base=INTEGERS),
    "prod_zeros": over(aten.prod.dim_int, 1, base=Z * MASK),
    "cumprod": over(aten.cumprod.default, 1),
    "any": over(aten.any.dim, 1, base=MASK),
    "all": over(aten.all.default, base=MASK),
    "count_nonzero": over(aten.count_nonzero.default, 1, base=INTEGERS),
}


@pytest.mark.parametrize("table", groups(SUMS, size=40))
def test_sum(table: dict[str, Case]) -> None:
    check_table(table)


MOMENTS = {
    "var": over(aten.var.dim, [1]),
    "var_biased": over(aten.var.dim, [2, 3], False),
    "var_keep": over(aten.var.dim, [0], True, True),
    "var_correction": over(aten.var.correction, [1, 3], correction=0),
    "var_all": over(aten.var.correction),
    "var_half": over(aten.var.correction, [1], correction=0.5, keepdim=True),
    "var_complex": over(aten.var.correction, [1], base=COMPLEX),
    "var_far_from_zero": over(aten.var.correction, [1], base=Z + 100, single=False),
    "std": over(aten.std.dim, [1]),
    "std_all": over(aten.std.correction),
    "std_correction": over(aten.std.correction, [3], correction=0, keepdim=True),
    "var_mean": over(aten.var_mean.correction, [1], correction=0),
    "var_mean_dim": over(aten.var_mean.dim, [1, 2]),
    "std_mean": over(aten.std_mean.correction, [1]),
    **{
        f"norm_{p}": over(aten.linalg_vector_norm.default, p, [1])
        for p in (0, 0.5, 1, 2, 3, float("inf"), -float("inf"))
    },
    **{f"norm_complex_{p}": over(aten.linalg_vector_norm.default, p, [1], base=COMPLEX) for p in (1, 2, 3)},
    "norm_all": over(aten.linalg_vector_norm.default),
    "norm_keep": over(aten.linalg_vector_norm.default, 2, [0, 3], True),
    "norm_dtype": over(aten.linalg_vector_norm.default, 2, [1], dtype=torch.float64),
    "linalg_norm": over(aten.linalg_norm.default),
    "linalg_norm_dim": over(aten.linalg_norm.default, 1, [1], True),
}


def test_moment() -> None:
    check_table(MOMENTS)


EXTREMA = {
    "amax": over(aten.amax.default, [1]),
    "amax_many": over(aten.amax.default, [1, 3], True),
    "amin": over(aten.amin.default, [2, 3]),
    "amax_all": over(aten.amax.default),
    "aminmax": over(aten.aminmax.default, dim=1),
    "max": over(aten.max.default),
    "min": over(aten.min.default),
    "max_dim": over(aten.max.dim, 1),
    "max_dim_keep": over(aten.max.dim, -1, True),
    "min_dim": over(aten.min.dim, 0),
    "max_integers": over(aten.amax.default, [1], base=INTEGERS),
    "max_bools": over(aten.amax.default, [1], base=MASK),
    "max_masked": over(aten.amax.default, [1], base=MASKED),
    "argmax": over(aten.argmax.default, 1),
    "topk": over(aten.topk.default, 2, 1),
    "sort": over(aten.sort.default, 1),
}


def test_extreme() -> None:
    check_table(EXTREMA)


SOFTMAX = {
    "softmax": over(aten.softmax.int, 1),
    "softmax_negative": over(aten.softmax.int, -1),
    "softmax_dtype": over(aten.softmax.int, 1, torch.float64),
    "softmax_masked": over(aten.softmax.int, 1, base=MASKED),
    "softmax_spread": over(aten.softmax.int, 1, base=20 * Z),
    "softmax_zero_dim": over(aten.softmax.int, 0, base=torch.tensor(0.3).double(), single=False),
    "log_softmax": over(aten.log_softmax.int, 1),
    "log_softmax_last": over(aten.log_softmax.int, -1),
    "log_softmax_dtype": over(aten.log_softmax.int, 1, torch.float64),
    "safe_softmax": over(aten._safe_softmax.default, 1, base=MASKED),
    "logsumexp": over(aten.logsumexp.default, [1]),
    "logsumexp_many": over(aten.logsumexp.default, [1, -1], True),
    "logsumexp_masked": over(aten.logsumexp.default, [1], base=MASKED),
}


def test_softmax() -> None:
    check_table(SOFTMAX)


LARGE = {
    name: Case(case.target, case.args, case.kwargs, scale=scale, single=False)
    for scale in (3.0, 100.0)
    for name, case in ((f"{name}_{scale}", case) for name, case in SOFTMAX.items())
}


def test_softmax_of_large_differences() -> None:
    check_table(LARGE)
