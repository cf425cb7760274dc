"""Half types: within the rounding of the weights' own gradient in float64."""

from __future__ import annotations

import pytest
import torch
from exact_gradients import Accuracy, assert_gradient, gradient, sampled
from members import SMALL, Member
from oracle import nothing_changes

import deepzero as dz

every_member = pytest.mark.parametrize("member", SMALL, ids=lambda member: member.name)
half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@every_member
@half_types
@pytest.mark.parametrize("step", [1e-2, 1e-3, None], ids=["0.01", "0.001", "default"])
def test_half_types(member: Member, dtype: torch.dtype, step: float | None) -> None:
    """Steps below the rounding of the weights are no hindrance: differences are carried, and never subtracted."""
    model, batch = member.model(dtype), member.arguments(dtype)
    exact = gradient(member, torch.float64, rounded_to=dtype)
    options = {} if step is None else {"step_size": step}
    zo = member.estimator(dz.CGE, model, sparsity=sampled(exact), stencil=dz.CENTRAL, **options)
    with nothing_changes_in(model):
        found = zo.estimate(*batch.args)
    assert_gradient(found.gradients, exact, sampled(exact), Accuracy(step=0, relative=2e-2, floor=2e-3))
