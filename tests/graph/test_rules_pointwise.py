"""Pointwise operations and broadcasting, with a rule and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from every_kind import Op, check_each, groups

POINTWISE: dict[str, Op] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "leaky_relu_default": F.leaky_relu,
    "exp": torch.exp,
    "log": lambda z: torch.log(z.square() + 0.5),
    "sqrt": lambda z: torch.sqrt(z.square() + 0.5),
    "rsqrt": lambda z: torch.rsqrt(z.square() + 0.5),
    "reciprocal": lambda z: torch.reciprocal(z.square() + 0.5),
    "neg": torch.neg,
    "square": torch.square,
    "pow2": lambda z: z**2,
    "pow3": lambda z: z**3,
    "pow_half": lambda z: (z.square() + 0.1) ** 0.5,
    "pow_of_two": lambda z: 2.0**z,
    "pow_tensor": lambda z: (z.square() + 0.1) ** torch.sigmoid(z),
    "add_number": lambda z: z + 0.7,
    "sub_number": lambda z: z - 0.7,
    "rsub_number": lambda z: 0.7 - z,
    "rsub_alpha": lambda z: torch.rsub(z, torch.ones_like(z), alpha=2),
    "add_alpha": lambda z: torch.add(z, z.square(), alpha=0.3),
    "sub_alpha": lambda z: torch.sub(z.square(), z, alpha=0.3),
    "mul_number": lambda z: 1.3 * z,
    "div_number": lambda z: z / 1.3,
    "number_div": lambda z: 1.3 / (z.square() + 0.5),
    "mul_self": lambda z: z * z,
    "div_both": lambda z: z / (z.square() + 0.5),
    "mul_constant": lambda z: z * torch.linspace(-1, 1, 5, dtype=z.dtype),
    "div_constant": lambda z: z / torch.linspace(1, 2, 5, dtype=z.dtype),
    "constant_div": lambda z: torch.linspace(1, 2, 5, dtype=z.dtype) / (z.square() + 0.5),
    "clone": lambda z: z.clone(),
    "detach": lambda z: z.detach() * z,
    "contiguous": lambda z: z.transpose(1, 2).contiguous(),
    "to_float32": lambda z: z.to(torch.float32).to(torch.float64) * 0 + z,
    # without a rule
    "abs": torch.abs,
    "sign": lambda z: torch.sign(z) * z,
    "round": lambda z: torch.round(3 * z) + z,
    "floor": lambda z: torch.floor(5 * z) + z,
    "clamp": lambda z: torch.clamp(z, -0.5, 0.5),
    "clamp_tensor": lambda z: torch.clamp(z, min=torch.linspace(-1, 0, 5, dtype=z.dtype)),
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "expm1": torch.expm1,
    "log1p": lambda z: torch.log1p(z.square()),
    "atan": torch.atan,
    "maximum": lambda z: torch.maximum(z, 0.3 * z.square()),
    "minimum_constant": lambda z: torch.minimum(z, torch.linspace(-1, 1, 5, dtype=z.dtype)),
    "where": lambda z: torch.where(z > 0.1, z, z.square()),
    "where_number": lambda z: torch.where(z > 0.1, z, 0.25),
    "masked_fill": lambda z: z.masked_fill(z > 0.4, 0.1),
    "masked_fill_fixed": lambda z: z.masked_fill(torch.arange(5) > 2, 0.1),
    "lerp": lambda z: torch.lerp(z, z.square(), 0.3),
    "addcmul": lambda z: torch.addcmul(z, z, z.tanh(), value=0.5),
    "fmod": lambda z: torch.fmod(z, 0.7),
}


@pytest.mark.parametrize("ops", groups(POINTWISE))
def test_pointwise(ops: dict[str, Op]) -> None:
    check_each(ops)


BROADCASTING: dict[str, Op] = {
    "add_lead": lambda z: z + z[0],
    "add_row": lambda z: z + z[:, :, :1],
    "add_channel": lambda z: z + z.mean((2, 3), keepdim=True),
    "add_last": lambda z: z + z[0, 0, 0],
    "add_scalar": lambda z: z + z.sum(),
    "sub_column": lambda z: z[..., :1] - z,
    "mul_gate": lambda z: z * torch.sigmoid(z.mean((2, 3), keepdim=True)),
    "mul_lead": lambda z: z * z[0],
    "mul_scalar": lambda z: z * z.mean(),
    "mul_outer": lambda z: z[:, :, :, None, :1] * z[:, :, None, :, 1:2],
    "div_channel": lambda z: z / (1 + z.square().mean((2, 3), keepdim=True)),
    "div_scalar": lambda z: z / (1 + z.square().sum()),
    "div_lead": lambda z: (1 + z[0]) / (2 + z.square()),
    "expand": lambda z: z[:, :, :1].expand(-1, -1, 6, -1),
    "expand_new": lambda z: z[0].expand(3, 4, 6, 5),
    "expand_as": lambda z: z[:, :1].expand_as(z) * z,
}


@pytest.mark.parametrize("ops", groups(BROADCASTING))
def test_broadcasting(ops: dict[str, Op]) -> None:
    check_each(ops)
