"""Half types: the gradient is that of the same weights in float64, up to the rounding of the forward."""

from __future__ import annotations

import copy

import pytest
import torch
from exact_gradients import Accuracy, assert_gradient, gradient, sampled
from members import SMALL, Member

import deepzero as dz

every_member = pytest.mark.parametrize("member", SMALL, ids=lambda member: member.name)
half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@every_member
@half_types
@pytest.mark.parametrize("step", [1e-2, 1e-4], ids=["step_1e-2", "step_1e-4"])
def test_half_types(member: Member, dtype: torch.dtype, step: float) -> None:
    """A step below the rounding of the weights is no hindrance: differences are carried to the loss, not subtracted there."""
    model, batch = member.model(dtype), member.arguments(dtype)
    before, exact = copy.deepcopy(model.state_dict()), gradient(member, dtype)
    zo = member.estimator(dz.CGE, model, step_size=step, stencil=dz.CENTRAL, sparsity=sampled(exact))
    found = zo.estimate(*batch.args)
    assert_gradient(found.gradients, exact, sampled(exact), Accuracy(step, relative=2e-2, floor=1e-2))
    assert {name: value.dtype for name, value in found.gradients.items()} == dict.fromkeys(exact, dtype)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
