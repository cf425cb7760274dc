"""Compiled pointwise functions against their formulas and float64, in every layout, and in the memory they may overwrite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, estimate, initialize, normal, some_coordinates
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph import kernels
from deepzero.graph.calls import Value
from deepzero.graph.cpu import activation_kernels
from deepzero.graph.differences import Channel, Dense
from deepzero.graph.rules import formulas

SLOPE = 0.2
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": formulas.relu, "leaky_relu": lambda z, d: formulas.leaky_relu(z, d, SLOPE), "gelu": formulas.gelu,
    "gelu_tanh": formulas.gelu_tanh, "sigmoid": formulas.sigmoid, "tanh": formulas.tanh, "silu": formulas.silu,
}  # fmt: skip
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky_relu": lambda z: F.leaky_relu(z, SLOPE), "gelu": F.gelu, "sigmoid": torch.sigmoid,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "tanh": torch.tanh, "silu": F.silu,
}  # fmt: skip
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SHAPE = (2, 5, 3, 7)


def fused(name: str, z: Tensor, difference: Channel | Dense, *, overwrite: bool = False) -> Tensor:
    out = kernels.on(z).activation(name, Value(z), difference, SLOPE, overwrite=overwrite)
    assert out is not None
    return out


def entry_wise(found: Tensor, exact: Tensor, tolerance: float, what: object = "") -> None:
    """Entry by entry, so that small changes count too."""
    error, size = (found.double() - exact).abs(), exact.abs()
    worst = (error / (tolerance * (size + 1e-2 * size.max()) + 1e-300)).max()
    assert float(worst) <= 1, f"{what}: off by {float(worst):.3g} times the tolerance"


@DTYPES
@pytest.mark.parametrize("scale", [1e-6, 3e-2, 0.6, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_the_formula(name: str, scale: float, dtype: torch.dtype) -> None:
    """More entries than a block has, of all sizes; some of them large."""
    z, d = (3 * normal(1, 2500)).to(dtype), (scale * normal(4, 1, 2500, seed=1)).to(dtype)
    found = fused(name, z, Dense(d))
    exact = FUNCTIONS[name](z.double(), d.double())
    entry_wise(found, exact, 2e-5 if dtype == torch.float32 else 1e-11, name)
    if scale >= 0.6:  # what cannot cancel is the plain difference
        plain = PLAIN[name](z.double() + d.double()) - PLAIN[name](z.double())
        entry_wise(found, plain, 2e-5 if dtype == torch.float32 else 1e-9, name)


def size_of(name: str, z: Tensor, d: Tensor) -> Tensor:
    """The change, or for a product ``z s(z)``, which has a minimum, the sum of the sizes of its parts."""
    if name == "gelu":
        return (d * torch.special.ndtr(z + d)).abs() + (z * formulas.gauss_interval(z, d)).abs()
    if name == "silu":
        return (d * torch.sigmoid(z + d)).abs() + (z * formulas.sigmoid(z, d)).abs()
    if name == "gelu_tanh":
        u, v = (2 * (2 / torch.pi) ** 0.5 * (w + 0.044715 * w**3) for w in (z, z + d))
        return (d * torch.sigmoid(v)).abs() + (z * formulas.sigmoid(u, v - u)).abs()
    return FUNCTIONS[name](z, d).abs()


@DTYPES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_holds_in_the_tails(name: str, dtype: torch.dtype) -> None:
    """At values of every size, relative to the change itself."""
    most = (
        6 if name == "gelu_tanh" else 11
    )  # its argument grows with the cube, and so does the error of its exponential
    z = torch.linspace(-most, most, 3001, dtype=torch.float64).to(dtype).unsqueeze(0)
    for size in (1e-5, 1e-2, 0.1, 0.3, 1.0, 4.0):
        for sign in (-1, 1):
            d = torch.full((1, 1, 3001), sign * size, dtype=dtype)
            found, exact = fused(name, z, Dense(d)).double(), FUNCTIONS[name](z.double(), d.double())
            size_here = size_of(name, z.double(), d.double())
            limit = 4e-5 * size_here if dtype == torch.float32 else 1e-9 * size_here + 1e-15
            worst = float(((found - exact).abs() / limit.clamp(min=1e-37)).max())
            assert worst <= 1, f"{sign * size}: {worst:.3g} times the tolerance"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_limits(name: str) -> None:
    """NaN stays NaN, infinities give what the formula gives, and an entry does not change its neighbours."""
    values = [0.0, -0.0, 1.0, -1.0, 90.0, -90.0, 200.0, -200.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan]
    z, d = torch.meshgrid(torch.tensor(values), torch.tensor([*values, 1e-3, -1e-3]), indexing="ij")
    z, d = z.reshape(1, -1), d.reshape(1, 1, -1)
    found = fused(name, z, Dense(d))
    single, exact = (
        torch.cat([FUNCTIONS[name](z[:, i : i + 1].to(t), d[..., i : i + 1].to(t)) for i in range(z.shape[1])], -1)
        for t in (torch.float32, torch.float64)
    )
    sure = single.isfinite() & exact.isfinite()
    assert int(sure.sum()) > 60
    assert bool(found.isnan()[z.isnan() | d.isnan()].all())
    assert_same(found[sure].double(), exact[sure], 1e-5)
    alone = torch.cat([fused(name, z[:, i : i + 1], Dense(d[..., i : i + 1])) for i in range(z.shape[1])], -1)
    assert_same(found, alone, 1e-5)


def assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found.nan_to_num(), expected.nan_to_num(), rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_layout(name: str, dtype: torch.dtype) -> None:
    """Dense differences and those of a channel of any axis: in memory of any order, expanded, sliced, of one perturbation."""
    z = normal(*SHAPE).to(dtype)
    dense = (0.01 * normal(4, *SHAPE, seed=1)).to(dtype)
    layouts = [
        dense, dense[:1], dense.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3), dense[:, :, :, :1].expand(dense.shape),
        torch.cat([dense, dense], -1)[..., ::2], dense.movedim(0, 2).contiguous().movedim(2, 0), dense[:1].expand(3, *SHAPE),
    ]  # fmt: skip
    tolerance = 2e-5 if dtype == torch.float32 else 1e-11
    for d in layouts:
        before = d.clone()
        entry_wise(fused(name, z, Dense(d)), FUNCTIONS[name](z.double(), d.double()), tolerance, d.stride())
        assert torch.equal(d, before)
    for axis in range(4):
        channels = torch.tensor([1, 0, 1])
        rest = [s for k, s in enumerate(SHAPE) if k != axis]
        own = (0.01 * normal(3, *rest, seed=2)).to(dtype)
        for d in (own, own.mT.contiguous().mT, own[..., :1].expand(own.shape)):
            exact = FUNCTIONS[name](z.double().movedim(axis, 0)[channels], d.double())
            entry_wise(fused(name, z, Channel(axis, channels, d, z.shape)), exact, tolerance, axis)


def test_declines_what_it_does_not_know() -> None:
    half, mixed = torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.float64)
    for z, d in ((half, half), (mixed, mixed.float()), (torch.zeros(0, 3), torch.zeros(0, 3))):
        assert (
            activation_kernels.activation("gelu", Value(z), Dense(d.expand(4, *d.shape)), 0.0, overwrite=False) is None
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_overwrites_only_when_it_may(name: str) -> None:
    z, d = normal(4, 6).float(), (0.1 * normal(3, 4, 6, seed=1)).float()
    expected, memory = fused(name, z, Dense(d)), d.clone()
    out = fused(name, z, Dense(memory), overwrite=True)
    assert out.data_ptr() == memory.data_ptr()
    assert torch.equal(out, expected)


class Shared(nn.Module):
    """Functions of a layer's output that is needed again: as itself, through a view, a slice, and a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.gelu(self.first(x)))
        view, half, turned, same = y.view(-1, 2, 3), y[:, :3], y.t(), y.clone()
        out = F.gelu(y)
        seen = out.view(-1, 2, 3)
        z = self.second(F.silu(out) + seen.flatten(1))
        twice = F.silu(z) + F.gelu(z)
        w = self.second(twice)
        kept = w.clone()
        last = torch.tanh(w) + torch.sigmoid(kept)
        both = view.flatten(1) + torch.cat([half, half], 1) + turned.t() + same
        return self.last(last * both)


@DTYPES
def test_a_difference_that_is_needed_again_is_not_overwritten(dtype: torch.dtype) -> None:
    model = initialize(Shared(), dtype=dtype)
    x, y = normal(5, 4, dtype=dtype), torch.tensor([0, 2, 1, 1, 0])
    chosen = some_coordinates(model, most=30)
    zo = estimate(model, F.cross_entropy, x, y, dz.PropagationEvaluator(), sparsity=chosen, step_size=1e-3)
    wide = initialize(Shared(), dtype=torch.float64)
    wide.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    exact = estimate(wide, F.cross_entropy, x.double(), y, dz.SequentialEvaluator(), sparsity=chosen, step_size=1e-3)
    assert_close(
        {n: g.double() for n, g in zo.gradients.items()}, exact.gradients, 1e-4 if dtype == torch.float32 else 1e-8
    )
