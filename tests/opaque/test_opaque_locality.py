"""Positions far apart are moved together: what all coordinates give, in as many evaluations as there are colours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import CoupledRowsError, InvalidInputError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(fn: nn.Module, z: Tensor) -> Tensor:
    given = z.clone().requires_grad_()
    output = fn(given)
    (found,) = torch.autograd.grad(output, given, normal(*output.shape, seed=7))
    return found


class Plain(nn.Module):
    """The same function, differentiated by autograd."""

    def __init__(self, fn: object) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, z: Tensor) -> Tensor:
        return self.fn(z)  # type: ignore[operator, no-any-return]


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    size=st.integers(4, 9),
    channels=st.integers(1, 3),
    dims=st.integers(1, 2),
)
def test_convolutions_of_any_geometry(
    kernel: int, stride: int, padding: int, size: int, channels: int, dims: int
) -> None:
    weight = normal(2, channels, *[kernel] * dims, seed=1)
    convolve = F.conv1d if dims == 1 else F.conv2d

    def fn(z: Tensor) -> Tensor:
        return convolve(z, weight, stride=stride, padding=padding)

    z = normal(2, channels, *[size, size + 1][:dims], seed=2)
    box = dz.Opaque(
        fn, directions="coordinates", locality=dz.Conv(kernel, stride, padding), stencil="forward", step_size=1.0
    )
    assert torch.allclose(product(box, z), product(Plain(fn), z), rtol=1e-10, atol=1e-10)
    checks = 2 + 8
    assert box.queries == 2 + checks + 2 * channels * kernel**dims


def test_a_curved_field() -> None:
    """Not the convolution matters, but what its outputs may depend on."""

    def fn(z: Tensor) -> Tensor:
        return F.max_pool2d(torch.tanh(F.conv2d(z, normal(3, 2, 3, 3), padding=1)), 2)

    z = normal(2, 2, 8, 8, seed=3)
    box = dz.Opaque(fn, directions="coordinates", locality=dz.Conv(4, 2, 1))
    plain = dz.Opaque(fn, directions="coordinates")
    assert torch.allclose(product(box, z), product(plain, z), rtol=1e-6, atol=1e-9)
    assert box.queries < plain.queries / 3


@pytest.mark.parametrize(
    ("fn", "locality", "shape", "colours"),
    [
        (torch.sin, dz.Elementwise(), (3, 4, 5), 1),
        (lambda z: torch.tanh(z @ normal(5, 2)), dz.PerToken(), (3, 7, 5), 5),
        (lambda z: torch.einsum("bft,fg->bgt", z, normal(4, 3)), dz.PerToken(dim=1), (2, 4, 6), 4),
    ],
    ids=["elementwise", "tokens", "tokens last"],
)
def test_other_localities(fn: object, locality: dz.opaque.Locality, shape: tuple[int, ...], colours: int) -> None:
    z = normal(*shape)
    box = dz.Opaque(fn, directions="coordinates", locality=locality)  # type: ignore[arg-type]
    assert torch.allclose(product(box, z), product(Plain(fn), z), rtol=1e-7, atol=1e-8)
    assert box.queries == shape[0] + 2 + 8 + shape[0] * 2 * colours


@pytest.mark.parametrize(
    ("fn", "locality"),
    [
        (lambda z: F.conv2d(z, normal(2, 2, 5, 5), padding=2), dz.Conv(3)),
        (lambda z: z - z.mean(dim=(2, 3), keepdim=True), dz.Elementwise()),
        (lambda z: z.softmax(3), dz.PerToken(dim=2)),
    ],
    ids=["too narrow", "global mean", "softmax over tokens"],
)
def test_a_false_declaration_is_refused(fn: object, locality: dz.opaque.Locality) -> None:
    box = dz.Opaque(fn, directions="coordinates", locality=locality)  # type: ignore[arg-type]
    with pytest.raises(CoupledRowsError, match=r"locality=.* is not true of this black box"):
        product(box, normal(2, 2, 7, 7))


@pytest.mark.parametrize(
    ("locality", "message"),
    [
        (dz.Elementwise(), r"for outputs of the input's shape"),
        (dz.PerToken(dim=5), r"as many tokens in dimension 5"),
        (dz.Conv((3, 3, 3)), r"kernel must be one number or 2"),
    ],
)
def test_a_declaration_of_other_shapes(locality: dz.opaque.Locality, message: str) -> None:
    box = dz.Opaque(lambda z: F.conv2d(z, normal(3, 2, 3, 3)), directions="coordinates", locality=locality)
    with pytest.raises(InvalidInputError, match=message):
        product(box, normal(2, 2, 7, 7))


def test_locality_goes_with_coordinates() -> None:
    with pytest.raises(InvalidInputError, match='goes with directions="coordinates"'):
        dz.Opaque(torch.sin, locality=dz.Elementwise())


def test_noise_is_not_taken_for_a_wider_field() -> None:
    """Read noise moves all outputs; a declaration is refused only for what moves more."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    wide = nn.Conv2d(1, 2, 5, padding=2, bias=False)
    noise = torch.Generator().manual_seed(0)

    def noisy(conv: nn.Conv2d) -> dz.Opaque:
        def run(z: Tensor, own: dict[str, Tensor]) -> Tensor:
            y = F.conv2d(z, own["weight"], padding=conv.padding)
            return y + 0.01 * torch.randn(y.shape, generator=noise)

        return dz.Opaque(
            run,
            parameters={"weight": conv.weight.detach().clone()},
            parameter_locality={"weight": dz.PerChannel()},
            directions="coordinates",
            step_size=1.0,
            parameter_step_size=1.0,
            locality=dz.Conv(3, padding=1),
        )

    x = torch.randn(4, 1, 8, 8, requires_grad=True)
    box = noisy(layer)
    with pytest.warns(dz.BlackBoxWarning, match="answers the same rows differently"):
        box(x).sum().backward()
    (exact,) = torch.autograd.grad(layer(x).sum(), layer.weight)
    found = next(box.parameters()).grad
    assert found is not None
    assert float((found - exact).norm() / exact.norm()) < 0.1
    with pytest.raises(CoupledRowsError, match="is not true of this black box"), pytest.warns(dz.BlackBoxWarning):
        noisy(wide)(x).sum().backward()
