"""Networks that others wrote: the estimates are the gradients that autograd gives, with no alarm and no warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from exact_gradients import Accuracy, assert_gradient, assert_one_direction, drawn_value, gradient, sampled
from members import MEMBERS, Member, graphs
from oracle import exported_once, nothing_changes
from torch import Tensor

import deepzero as dz
from deepzero import objective

PROPAGATED = {
    torch.float64: Accuracy(step=1e-7, relative=1e-6, floor=1e-8),
    torch.float32: Accuracy(step=1e-5, relative=1e-4, floor=2e-6),
}
WHOLE = {
    torch.float64: Accuracy(step=1e-7, relative=1e-5, floor=1e-7),
    torch.float32: Accuracy(step=1e-2, relative=1e-2, floor=1e-4),
}
"""With a full forward a query the losses are subtracted, and lose what their rounding is to the step."""

every_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
both_dtypes = pytest.mark.parametrize("dtype", list(PROPAGATED), ids=["float64", "float32"])


def accuracy(member: Member, dtype: torch.dtype) -> Accuracy:
    return (WHOLE if member.whole else PROPAGATED)[torch.float32 if member.rounds else dtype]


@contextmanager
def only_expected_warnings(member: Member) -> Iterator[None]:
    """Any warning is an error; a member that takes a forward a query must warn."""
    if not member.whole:
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(w.message) for w in caught if "forward" in str(w.message)], "nothing said that every query is a forward"
    assert len(caught) == 1


def sequential(member: Member, kind: Callable[..., dz.Estimator], options: dict[str, Any]) -> dict[str, Tensor]:
    """The finite differences themselves, one forward after another in float64: where a function jumps, autograd is no help."""
    batch = member.arguments(torch.float64)
    zo = member.estimator(kind, member.model(torch.float64), evaluator=dz.SequentialEvaluator(), **options)
    return zo.estimate(*batch.args, **batch.kwargs).gradients


@every_member
@both_dtypes
def test_coordinates(member: Member, dtype: torch.dtype) -> None:
    """Each parameter's largest slope and some of its others; no operation takes the fallback but those that are known to."""
    model, batch, accepted = member.model(dtype), member.arguments(dtype), accuracy(member, dtype)
    exact = gradient(member, dtype)
    options = {
        "step_size": accepted.step,
        "sparsity": sampled(exact),
        "stencil": dz.CENTRAL if member.whole else dz.FORWARD,
    }
    zo = member.estimator(dz.CGE, model, **options)
    with exported_once(graphs(member.name, dtype)), only_expected_warnings(member), nothing_changes(model):
        found = zo.estimate(*batch.args, **batch.kwargs)
    expected = exact if member.smooth else sequential(member, dz.CGE, options)
    assert_gradient(found.gradients, expected, options["sparsity"], accepted)
    value = drawn_value(member, member.model(torch.float64), dtype)
    torch.testing.assert_close(float(found.loss), float(value.detach()), rtol=1e-5, atol=1e-6)
    if not member.whole:
        program = zo.evaluator.program(zo.objective, objective.Batch(batch.args, batch.kwargs))
        assert set(program.fallbacks) <= member.fallbacks


@pytest.mark.parametrize(
    ("member", "seed"), [pytest.param(m, place % 2, id=f"{m.name}-{place % 2}") for place, m in enumerate(MEMBERS)]
)
def test_random_directions(member: Member, seed: int) -> None:
    """The slope along a random direction is the product of the gradient with it; ``backward`` puts it where optimizers look."""
    model, batch = member.model(torch.float64), member.arguments(torch.float64)
    step, relative = (1e-4, 3e-2) if member.rounds else (1e-6, 1e-5)
    options = {"step_size": step, "stencil": dz.CENTRAL, "queries": 1, "distribution": "rademacher", "seed": seed}
    zo = member.estimator(dz.RGE, model, **options)
    with exported_once(graphs(member.name, torch.float64)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?is).*forward")
        with nothing_changes(model):
            found = zo.estimate(*batch.args, **batch.kwargs)
        zo.backward(*batch.args, **batch.kwargs)
    if member.smooth:
        assert_one_direction(found.gradients, gradient(member, torch.float64, seed), relative)
    else:
        torch.testing.assert_close(found.gradients, sequential(member, dz.RGE, options), rtol=1e-6, atol=1e-9)
    filled = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    torch.testing.assert_close(filled, found.gradients, rtol=0, atol=0)
