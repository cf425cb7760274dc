"""Every rule of a pointwise operation by itself: on each kind of difference, in float64 and at a tiny step in float32."""

from __future__ import annotations

import pytest
import torch
from every_kind import groups
from oracle import normal
from rule_cases import SHAPE, Case, Differs, aten, check_table

Z = 2 * normal(*SHAPE, seed=1)
POSITIVE = 1.5 + Z.abs()
ROW = torch.linspace(-1, 1, 5, dtype=torch.float64)
CHANNELS = torch.linspace(0.5, 2, 4, dtype=torch.float64).reshape(4, 1, 1)
INTEGERS = (3 * Z).round().long()
MASK = Z > 0.5


def of(name: str, base: torch.Tensor = Z, *options: object, **named: object) -> Case:
    return Case(getattr(aten, name).default, (Differs(base), *options), named, keeps=True)


FUNCTIONS = {
    **{
        name: of(name)
        for name in [
            "relu",
            "tanh",
            "sigmoid",
            "silu",
            "mish",
            "elu",
            "celu",
            "selu",
            "softplus",
            "log_sigmoid",
            "hardtanh",
            "relu6",
            "hardsigmoid",
            "hardswish",
            "abs",
            "exp",
            "expm1",
            "exp2",
            "square",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "atan",
            "erf",
            "erfc",
            "special_ndtr",
            "leaky_relu",
            "gelu",
            "neg",
            "deg2rad",
            "rad2deg",
            "reciprocal",
            "asinh",
            "sinc",
        ]
    },
    **{name: of(name, POSITIVE) for name in ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "lgamma"]},
    "gelu_tanh": of("gelu", Z, approximate="tanh"),
    "elu_options": of("elu", Z, 0.7, 1.3, 2.0),
    "celu_alpha": of("celu", Z, 0.7),
    "softplus_beta": of("softplus", Z, 3.0),
    "softplus_threshold": of("softplus", Z, 2.0, 1.0),
    "hardtanh_bounds": of("hardtanh", Z, -0.4, 1.7),
    "leaky_relu_slope": of("leaky_relu", Z, 0.3),
    "threshold": of("threshold", Z, 0.2, -3.0),
    "logit": of("logit", torch.sigmoid(Z), 1e-6),
    "abs_of_integers": of("abs", INTEGERS),
    "square_of_integers": of("square", INTEGERS),
    "floor": of("floor", 3 * Z),
    "round": of("round", 3 * Z),
    "sign": of("sign"),
    "frac": of("frac", 3 * Z),
    "isnan": of("isnan"),
    "logical_not": of("logical_not", MASK),
    "glu_channels": Case(aten.glu.default, (Differs(Z), 1)),
    "glu_batch": Case(aten.glu.default, (Differs(Z), 0)),
    "view": Case(aten.clone.default, (Differs(Z),), keeps=True),
    "to_half": Case(
        aten._to_copy.default, (Differs(Z),), {"dtype": torch.float32}, keeps=True, single=False, scale=2.0**-3
    ),
    "to_integers": Case(aten._to_copy.default, (Differs(3 * Z),), {"dtype": torch.int32}, keeps=True),
    "to_bool": Case(aten._to_copy.default, (Differs(INTEGERS),), {"dtype": torch.bool}, keeps=True),
    "from_integers": Case(aten._to_copy.default, (Differs(INTEGERS),), {"dtype": torch.float64}, keeps=True),
    "to_complex": Case(aten._to_copy.default, (Differs(Z),), {"dtype": torch.complex128}, keeps=True, single=False),
}
del FUNCTIONS["to_half"]


@pytest.mark.parametrize("table", groups(FUNCTIONS, size=30))
def test_function(table: dict[str, Case]) -> None:
    check_table(table)
    assert len(table) > 3


POWERS = {
    **{
        f"pow_{e}": Case(aten.pow.Tensor_Scalar, (Differs(POSITIVE), e), keeps=True)
        for e in (0, 0.5, -0.5, -1, 1, 2, 3, 4, 2.5, -2, 1e-3, -1.7)
    },
    **{
        f"signed_pow_{e}": Case(aten.pow.Tensor_Scalar, (Differs(Z), e), keeps=True)
        for e in (-1, 1, 2, 3, 4, 5, -2, 3.0)
    },
    "pow_of_integers": Case(aten.pow.Tensor_Scalar, (Differs(INTEGERS), 3), keeps=True),
    "pow_of_two": Case(aten.pow.Scalar, (2.0, Differs(Z)), keeps=True),
    "pow_of_one": Case(aten.pow.Scalar, (1, Differs(Z)), keeps=True),
    "pow_tensors": Case(aten.pow.Tensor_Tensor, (Differs(POSITIVE), Differs(Z, seed=1)), single=True),
    "pow_exponent": Case(aten.pow.Tensor_Tensor, (POSITIVE, Differs(Z)), keeps=True),
    "pow_base": Case(aten.pow.Tensor_Tensor, (Differs(POSITIVE), ROW), keeps=True),
    "pow_negative_base": Case(
        aten.pow.Tensor_Tensor, (Differs(Z), torch.full((5,), 3.0, dtype=torch.float64)), keeps=True
    ),
}


def test_power() -> None:
    check_table(POWERS)


def pair(target: object, other: object = ROW, base: torch.Tensor = Z, **named: object) -> dict[str, Case]:
    """The operation where the first operand differs, the second, and both, which broadcast."""
    both = (Differs(base), Differs(other, seed=1))
    return {
        f"{target}_first": Case(target, (Differs(base), other), dict(named), keeps=True),
        f"{target}_second": Case(target, (other, Differs(base)), dict(named), keeps=True),
        f"{target}_both": Case(target, both, dict(named)),
    }


PAIRS = {
    **pair(aten.add.Tensor),
    **pair(aten.add.Tensor, CHANNELS, alpha=0.3),
    **pair(aten.sub.Tensor, alpha=2),
    **pair(aten.rsub.Tensor, alpha=2),
    **pair(aten.mul.Tensor),
    **pair(aten.mul.Tensor, CHANNELS),
    **pair(aten.div.Tensor, 2 + ROW, POSITIVE),
    **pair(aten.maximum.default),
    **pair(aten.minimum.default, CHANNELS),
    **pair(aten.max.other),
    **pair(aten.fmax.default),
    **pair(aten.atan2.default, 2 + ROW, POSITIVE),
    **pair(aten.hypot.default),
    **pair(aten.logaddexp.default, CHANNELS),
    **pair(aten.remainder.Tensor, 2 + ROW, POSITIVE),
    **pair(aten.gt.Tensor),
    **pair(aten.xlogy.Tensor, 2 + ROW, POSITIVE),
    **pair(aten.clamp_min.Tensor),
    **pair(aten.clamp_max.Tensor, CHANNELS),
    "add_number": Case(aten.add.Tensor, (Differs(Z), 0.7), keeps=True),
    "mul_number": Case(aten.mul.Scalar, (Differs(Z), 1.3), keeps=True),
    "div_number": Case(aten.div.Tensor, (Differs(Z), 1.3), keeps=True),
    "div_floor": Case(aten.div.Tensor_mode, (Differs(3 * Z), 0.7), {"rounding_mode": "floor"}, keeps=True),
    "div_integers": Case(aten.div.Tensor, (Differs(INTEGERS), 4), keeps=True),
    "mul_integers": Case(aten.mul.Tensor, (Differs(INTEGERS), Differs(INTEGERS + 2, seed=1))),
    "or_of_bools": Case(aten.add.Tensor, (Differs(MASK), Z > 0), keeps=True),
    "floor_divide": Case(aten.floor_divide.default, (Differs(3 * Z), 2), keeps=True),
    "comparison_number": Case(aten.ge.Scalar, (Differs(Z), 0.1), keeps=True),
    "mul_zero_dim": Case(aten.mul.Tensor, (Differs(Z), Differs(torch.tensor(0.7).double(), seed=1))),
}


@pytest.mark.parametrize("table", groups(PAIRS, size=30))
def test_pair(table: dict[str, Case]) -> None:
    check_table(table)


OTHER = normal(*SHAPE, seed=4)
SELECTIONS = {
    "where": Case(aten.where.self, (MASK, Differs(Z), ROW), keeps=True),
    "where_other": Case(aten.where.self, (ROW > 0, Z, Differs(OTHER)), keeps=True),
    "where_both": Case(aten.where.self, (MASK, Differs(Z), Differs(OTHER, seed=1))),
    "where_number": Case(aten.where.ScalarOther, (MASK, Differs(Z), 0.25), keeps=True),
    "where_number_first": Case(aten.where.ScalarSelf, (MASK, 0.25, Differs(Z)), keeps=True),
    "masked_fill": Case(aten.masked_fill.Scalar, (Differs(Z), ROW > 0, 0.1), keeps=True),
    "masked_fill_infinite": Case(aten.masked_fill.Scalar, (Differs(Z), MASK, -float("inf")), keeps=True),
    "masked_fill_tensor": Case(aten.masked_fill.Tensor, (Z, MASK, Differs(torch.tensor(0.2).double()))),
    "clamp": Case(aten.clamp.default, (Differs(Z), -0.5, 0.5), keeps=True),
    "clamp_low": Case(aten.clamp.default, (Differs(Z), -0.5), keeps=True),
    "clamp_high": Case(aten.clamp.default, (Differs(Z), None, 0.5), keeps=True),
    "clamp_keywords": Case(aten.clamp.default, (Differs(Z),), {"max": 0.5}, keeps=True),
    "clamp_crossed": Case(aten.clamp.default, (Differs(Z), 0.5, -0.5), keeps=True),
    "clamp_tensors": Case(aten.clamp.Tensor, (Differs(Z), ROW, CHANNELS), keeps=True),
    "clamp_bounds": Case(aten.clamp.Tensor, (Z, Differs(OTHER - 1), Differs(OTHER + 1, seed=1))),
    "clamp_integers": Case(aten.clamp.default, (Differs(INTEGERS), -2, 3), keeps=True),
    "clamp_min": Case(aten.clamp_min.default, (Differs(Z), 0), keeps=True),
    "clamp_max": Case(aten.clamp_max.default, (Differs(Z), 0.2), keeps=True),
    "lerp": Case(aten.lerp.Scalar, (Differs(Z), OTHER, 0.3), keeps=True),
    "lerp_all": Case(aten.lerp.Tensor, (Differs(Z), Differs(OTHER, seed=1), Differs(ROW, seed=2))),
    "addcmul": Case(aten.addcmul.default, (Differs(Z), OTHER, ROW), {"value": 0.5}, keeps=True),
    "addcmul_all": Case(
        aten.addcmul.default, (Differs(Z), Differs(OTHER, seed=1), Differs(CHANNELS, seed=2)), {"value": 0.5}
    ),
    "addcdiv": Case(aten.addcdiv.default, (Z, Differs(OTHER), CHANNELS), {"value": 0.5}, keeps=True),
    "addcdiv_all": Case(
        aten.addcdiv.default, (Differs(Z), Differs(OTHER, seed=1), Differs(POSITIVE, seed=2)), {"value": 0.5}
    ),
}


def test_selection() -> None:
    check_table(SELECTIONS)
