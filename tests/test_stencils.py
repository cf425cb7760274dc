"""A stencil is a consistent finite-difference formula of its stated order."""

from __future__ import annotations

import pytest
import torch

from deepzero.stencils import CENTRAL, FORWARD, Stencil


@pytest.mark.parametrize("stencil", [FORWARD, CENTRAL], ids=lambda s: s.name)
def test_moments_match_the_order(stencil: Stencil) -> None:
    """``sum_j w_j nu_j^m`` is 1 for m = 1 and 0 for m = 2 .. order: exact on polynomials up to the order."""
    for power in range(1, stencil.order + 2):
        moment = sum(w * n**power for n, w in zip(stencil.nodes, stencil.weights, strict=True))
        if power == 1:
            assert moment == 1
        elif power <= stencil.order:
            assert moment == 0
        else:
            assert moment != 0, "the order is understated"


@pytest.mark.parametrize(("stencil", "order"), [(FORWARD, 1), (CENTRAL, 2)])
def test_measured_order(stencil: Stencil, order: int) -> None:
    """Halving the step divides the error in the derivative of exp at 0 by 2 to the order."""
    errors = []
    for step in (1e-2, 5e-3):
        offsets = torch.tensor(stencil.nodes, dtype=torch.float64) * step
        slope = stencil.slopes(torch.expm1(offsets).unsqueeze(1), step)
        errors.append(float((slope - 1).abs()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.02)


def test_slopes_keep_the_dtype_and_one_entry_per_direction() -> None:
    slopes = CENTRAL.slopes(torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.0, 4.0]]), 0.5)
    assert slopes.dtype == torch.float32
    assert slopes.tolist() == [2.0, 2.0, -4.0]
