"""Seeds are pure functions; scopes leave the global generators as they found them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.randomness import derive_seed, seeded_scope


def test_seeds_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert derive_seed(0) == 2631537505891389924
    assert derive_seed(0, "directions", 3) == 2987702136947302448


def test_seeds_fit_a_generator_and_differ() -> None:
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_the_order_and_kind_of_the_parts_count() -> None:
    assert len({derive_seed(1, 2), derive_seed(2, 1), derive_seed(12), derive_seed("1", 2)}) == 4


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_scope_draws_from_its_seed_and_restores() -> None:
    with seeded_scope(5, torch.device("cpu")):
        first = torch.randn(4)
    with seeded_scope(5, torch.device("cpu")):
        second = torch.randn(4)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.randn(4, generator=torch.Generator().manual_seed(5)))


@pytest.mark.usefixtures("global_rng_untouched")
def test_a_scope_restores_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), seeded_scope(5, torch.device("cpu")):  # noqa: PT012
        torch.randn(4)
        raise ValueError("stop")


@pytest.mark.usefixtures("global_rng_untouched")
def test_threads_do_not_draw_from_the_scopes_of_others() -> None:
    def draw(seed: int) -> torch.Tensor:
        with seeded_scope(seed, torch.device("cpu")):
            return torch.cat([torch.randn(3) for _ in range(20)])

    expected = [draw(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, range(40)))
    assert all(map(torch.equal, drawn, expected))


@pytest.mark.usefixtures("global_rng_untouched")
def test_scopes_nest() -> None:
    with seeded_scope(1, torch.device("cpu")):
        first = torch.randn(2)
        with seeded_scope(2, torch.device("cpu")):
            torch.randn(5)
        rest = torch.randn(2)
    with seeded_scope(1, torch.device("cpu")):
        assert torch.equal(torch.randn(2), first)
        assert torch.equal(torch.randn(2), rest)


def test_a_generator_of_the_programs_own_moves_once_a_step() -> None:
    """Its draws are shared by all queries of a step; afterwards it stands where one forward would have left it."""
    own = torch.Generator().manual_seed(3)
    model = initialize(nn.Linear(4, 3))
    x, y = normal(5, 4), torch.tensor([0, 1, 2, 1, 0])

    def noisy(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m(x + torch.randn(x.shape, generator=own, dtype=x.dtype)), y)

    twin = torch.Generator().manual_seed(3)
    expected = x + torch.randn(x.shape, generator=twin, dtype=x.dtype)
    exact = torch.autograd.grad(F.cross_entropy(model(expected), y), model.weight)[0]
    for evaluator in ("sequential", "batched"):
        zo = dz.CGE(model, closure=noisy, step_size=1e-6, evaluator=evaluator)
        before = own.get_state()
        found = zo.estimate(x, y).gradients["weight"]
        assert torch.equal(own.get_state(), before)
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    zo.backward(x, y)
    assert torch.equal(own.get_state(), twin.get_state())
