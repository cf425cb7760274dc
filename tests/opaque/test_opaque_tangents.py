"""Forward mode: the tangent of a black box's output is a difference along the tangent of its input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import deepzero as dz
from deepzero.errors import InvalidInputError


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


W = normal(3, 2)


def curved(z: Tensor) -> Tensor:
    return torch.tanh(z @ W.to(z)) * z.square().sum(1, keepdim=True)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("stencil", "bound"), [("central", 1e-8), ("forward", 1e-6)])
def test_the_tangent_is_that_of_the_function(stencil: str, bound: float, size: float) -> None:
    """Whatever the size of the tangents, row by row, and 0 for a row whose tangent is 0."""
    z, u = normal(5, 3), size * normal(5, 3, seed=1)
    u[1] *= 1e-3
    u[2] = 0
    box = dz.Opaque(curved, stencil=stencil)
    value, tangent = torch.func.jvp(box, (z,), (u,))
    exact, wanted = torch.func.jvp(curved, (z,), (u,))
    assert torch.equal(value, exact)
    error = (tangent - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-300)
    assert bool((error[[0, 1, 3, 4]] < bound).all())
    assert bool((tangent[2] == 0).all())
    nodes = 2 if stencil == "central" else 1
    assert box.queries <= (1 + nodes) * 5 + 4  # and the check of rows


def test_single_precision() -> None:
    z, u = normal(5, 3, dtype=torch.float32), normal(5, 3, seed=1, dtype=torch.float32)
    _, tangent = torch.func.jvp(dz.Opaque(curved), (z,), (u,))
    _, wanted = torch.func.jvp(curved, (z.double(),), (u.double(),))
    assert tangent.dtype == torch.float32
    assert float((tangent - wanted).norm() / wanted.norm()) < 1e-3


def test_parameters_and_rows_that_depend_on_each_other() -> None:
    layer = nn.Linear(3, 2).double()
    box = dz.Opaque(layer)
    weights = {f"module.{name}": p.detach() for name, p in layer.named_parameters()}
    moved = {name: torch.ones_like(p) for name, p in weights.items()}
    z = normal(4, 3)
    _, tangent = torch.func.jvp(lambda w: torch.func.functional_call(box, w, (z,)), (weights,), (moved,))
    assert torch.allclose(tangent, z.sum(1, keepdim=True) + 1 + torch.zeros(4, 2, dtype=torch.float64), atol=1e-8)

    def normalized(z: Tensor) -> Tensor:
        return z / z.square().sum().sqrt()

    u = normal(4, 3, seed=1)
    _, wanted = torch.func.jvp(normalized, (z,), (u,))
    _, tangent = torch.func.jvp(dz.Opaque(normalized, coupled=True), (z,), (u,))
    assert torch.allclose(tangent, wanted, atol=1e-8)
    with pytest.raises(dz.errors.CoupledRowsError):
        torch.func.jvp(dz.Opaque(normalized), (z,), (u,))


def test_forward_mode_by_dual_numbers_and_a_network_around() -> None:
    """As the forward-gradient baselines use it: no tangent is lost on the way."""
    torch.manual_seed(0)
    front = nn.Linear(4, 3).double()
    model, reference = nn.Sequential(front, dz.Opaque(curved)), lambda x: curved(front(x))
    x, u = normal(5, 4), normal(5, 4, seed=1)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, u))).tangent
    _, wanted = torch.func.jvp(reference, (x,), (u,))
    assert torch.allclose(tangent, wanted, atol=1e-8)


def test_what_numpy_and_a_black_box_cannot_hold() -> None:
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(InvalidInputError, match=r"NumPy has no bfloat16: .* box\(z.float\(\)\)"):
        dz.Opaque(lambda z: z, numpy=True)(half)
    with pytest.raises(InvalidInputError, match=r"takes real tensors; give it torch.view_as_real"):
        dz.Opaque(lambda z: z.abs())(torch.ones(2, 3, dtype=torch.complex64))
