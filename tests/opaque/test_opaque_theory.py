"""The product's bias, variance and order are what theory says of them; see the docstrings of the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deepzero as dz
from deepzero.opaque.directions import RANDOM, RowDirections, cosines

Z = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
V = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
W = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def linear(z: Tensor) -> Tensor:
    return z @ W


def curved(z: Tensor) -> Tensor:
    return torch.sin(z @ W) + (z @ W) ** 3 / 10


def product(box: nn.Module, z: Tensor = Z, v: Tensor = V) -> Tensor:
    given = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(box(given), given, v)
    return found


def true_product(fn: Callable[[Tensor], Tensor], z: Tensor = Z, v: Tensor = V) -> Tensor:
    given = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(fn(given), given, v)
    return found


def estimates(fn: Callable[[Tensor], Tensor], count: int, **options: object) -> Tensor:
    """Products with directions of their own, ``[count, b, d]``."""
    box = dz.Opaque(fn, **options)  # type: ignore[arg-type]
    return torch.stack([product(box) for _ in range(count)])


@pytest.mark.parametrize("stencil", ["forward", "central"])
@pytest.mark.parametrize(
    "options", [{"directions": "coordinates"}, {"directions": "orthogonal", "queries": 6}], ids=["coordinates", "block"]
)
def test_exact_on_linear_functions(stencil: str, options: dict[str, object]) -> None:
    """All coordinates, and a complete orthonormal block, leave nothing out."""
    box = dz.Opaque(linear, stencil=stencil, **options)  # type: ignore[arg-type]
    assert torch.allclose(product(box), V @ W.T, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("stencil", "order"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("directions", ["coordinates", "orthogonal"])
def test_order_of_the_stencil(stencil: str, order: int, directions: str) -> None:
    """Halving the step divides the error by 2 to the order."""
    options = {} if directions == "coordinates" else {"queries": 6}
    errors = [
        float(
            (
                product(dz.Opaque(curved, stencil=stencil, directions=directions, step_size=h, **options))  # type: ignore[arg-type]
                - true_product(curved)
            ).norm()
        )
        for h in (2e-2, 1e-2)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("kind", RANDOM)
def test_the_mean_is_the_product(kind: str) -> None:
    """Within four standard errors, in every entry."""
    found = estimates(linear, 400, directions=kind, queries=3)
    error = found.mean(0) - V @ W.T
    assert bool((error.abs() < 4.5 * found.std(0) / 400**0.5).all())


FACTORS: dict[str, Callable[[int, int], float]] = {
    "gaussian": lambda d, q: (d + 1) / q,
    "sphere": lambda d, q: (d - 1) / q,
    "rademacher": lambda d, q: (d - 1) / q,
    "orthogonal": lambda d, q: d / q - 1,
}


def relative_error(found: Tensor, true: Tensor) -> float:
    return float(((found - true).square().sum((1, 2)) / true.square().sum()).mean())


@pytest.mark.parametrize("kind", RANDOM)
def test_the_error_is_that_of_the_formula(kind: str) -> None:
    true = V @ W.T
    assert relative_error(estimates(linear, 600, directions=kind, queries=3), true) == pytest.approx(
        FACTORS[kind](6, 3), rel=0.12
    )


class Guess(nn.Module):
    """A linear guess whose pulled-back cotangent is a given share away from the truth."""

    def __init__(self, share: float) -> None:
        super().__init__()
        noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        self.weight = nn.Parameter(W + share * noise)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.weight


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
def test_a_guess_scales_the_error_and_leaves_the_mean(kind: str) -> None:
    true, guess = V @ W.T, Guess(0.3)
    found = estimates(linear, 600, directions=kind, queries=3, surrogate=guess)
    away = float((V @ guess.weight.detach().T - true).square().sum() / true.square().sum())
    assert relative_error(found, true) == pytest.approx(FACTORS[kind](6, 3) * away, rel=0.15)
    assert bool(((found.mean(0) - true).abs() < 4.5 * found.std(0) / 600**0.5).all())


def test_a_wrong_guess_is_no_bias() -> None:
    found = estimates(linear, 600, directions="gaussian", queries=3, surrogate=Guess(5.0))
    assert bool(((found.mean(0) - V @ W.T).abs() < 4.5 * found.std(0) / 600**0.5).all())


def test_a_learned_guess_lowers_the_error() -> None:
    """It learns from the very rows that the products ask about."""
    guess = dz.Learned(nn.Linear(6, 4).double(), lr=0.05, steps=40)
    box = dz.Opaque(linear, directions="orthogonal", queries=2, surrogate=guess)
    errors = [relative_error(product(box).unsqueeze(0), V @ W.T) for _ in range(30)]
    plain = dz.Opaque(linear, directions="orthogonal", queries=2)
    without = [relative_error(product(plain).unsqueeze(0), V @ W.T) for _ in range(30)]
    assert np.mean(errors[-10:]) < 0.05 * np.mean(without)


def test_rows_are_estimated_for_themselves() -> None:
    """What stands in the other rows, and what is asked of them, does not move a row's product."""
    others = Z.clone()
    others[1:] += 3
    first = product(dz.Opaque(curved, queries=4))
    second = product(dz.Opaque(curved, queries=4), others, V * torch.tensor([[1.0], [5.0], [-2.0]]))
    assert torch.allclose(first[0], second[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first[1], second[1])


def test_a_row_that_nobody_asks_about_costs_nothing() -> None:
    box = dz.Opaque(curved, queries=4)
    cotangent = V.clone()
    cotangent[1] = 0
    found = product(box, v=cotangent)
    assert bool((found[1] == 0).all())
    assert box.queries == 3 + 2 + 2 * 2 * 4  # forward, the check of the rows, two rows by two sides of four directions


@pytest.mark.parametrize("kind", RANDOM)
def test_directions_are_a_function_of_the_seed(kind: str) -> None:
    def drawn(seed: int, most: int) -> Tensor:
        return torch.cat(list(RowDirections(kind, 2, 5, 7, seed, Z).blocks(most)), dim=1)

    before = torch.random.get_rng_state()
    assert drawn(0, 3).shape == (2, 5 if kind == "orthogonal" else 7, 5)
    assert torch.equal(drawn(0, 3), drawn(0, 3))
    assert not torch.equal(drawn(0, 3), drawn(1, 3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_orthogonal_blocks_are_orthonormal() -> None:
    (block,) = RowDirections("orthogonal", 4, 9, 5, 3, Z).blocks(100)
    assert torch.allclose(block @ block.mT, torch.eye(5, dtype=torch.float64).expand(4, 5, 5))
    complete = torch.cat(list(RowDirections("orthogonal", 1, 4, 10, 3, Z).blocks(3)), dim=1)[0]
    assert torch.allclose(complete @ complete.T, torch.eye(4, dtype=torch.float64))  # no more than there can be
    large = cosines(torch.tensor([0, 1, 4999, 123_456]), 150_000)
    assert torch.allclose(large @ large.T, torch.eye(4, dtype=torch.float64), atol=1e-9)
