"""Every probe on every evaluator with every stencil, on the same problem: same numbers, nothing changed, same bits twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import nn

import deepzero as dz
from deepzero.coordinates import Dense
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.evaluators import Evaluator
from deepzero.probes import DISTRIBUTIONS, CoordinateProbes, Probes, RandomProbes

PROBES: dict[str, Callable[[], Probes]] = {
    "coordinates": lambda: CoordinateProbes(Dense()),
    **{name: lambda name=name: RandomProbes(6, name, seed=3) for name in DISTRIBUTIONS},
}
EVALUATORS: dict[str, tuple[Callable[[], Evaluator], set[str]]] = {
    "sequential": (dz.SequentialEvaluator, set(PROBES)),
    "batched": (lambda: dz.BatchedEvaluator(chunk=4), set(DISTRIBUTIONS)),
    "propagation": (dz.PropagationEvaluator, {"coordinates"}),
}
STENCILS = {stencil.name: stencil for stencil in (dz.FORWARD, dz.CENTRAL)}
SUITE = [(p, e, s) for p in PROBES for e, (_, accepted) in EVALUATORS.items() if p in accepted for s in STENCILS]
REFUSED = [(p, e) for p in PROBES for e, (_, accepted) in EVALUATORS.items() if p not in accepted]

X = normal(5, 2, 5, 5)
Y = torch.tensor([0, 1, 2, 1, 0])


def network() -> nn.Module:
    """Batch norm in train mode, dropout, a frozen bias and a tied pair of weights."""
    first, second = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), first, nn.Dropout(0.3), second, nn.Flatten(), nn.Linear(27, 3)
    )
    initialize(model)
    second.bias.requires_grad_(False)
    return model


def estimator(probe: str, evaluator: str, stencil: str, model: nn.Module, **options: Any) -> dz.Estimator:
    return dz.Estimator(
        dz.NetworkObjective(model, options.pop("loss", F.cross_entropy)),
        probes=PROBES[probe](),
        evaluator=EVALUATORS[evaluator][0](),
        stencil=STENCILS[stencil],
        step_size=options.pop("step_size", 1e-2),
        **options,
    )


@pytest.fixture(params=SUITE, ids="-".join)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    return request.param


def test_agrees_with_the_oracle(case: tuple[str, str, str]) -> None:
    probe, _, stencil = case
    model = network()
    zo = estimator(*case, model, seed=4)
    expected = estimator(probe, "sequential", stencil, model, seed=4).estimate(X, Y)
    with nothing_changes(model):
        found = zo.estimate(X, Y)
        again = zo.estimate(X, Y)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert_close(found.gradients, expected.gradients)
    assert found.queries == expected.queries
    assert torch.equal(found.loss, again.loss)
    assert all(torch.equal(value, again.gradients[name]) for name, value in found.gradients.items())
    assert not any(g.requires_grad for g in found.gradients.values())


def test_backward_fills_grad_and_moves_the_statistics_once(case: tuple[str, str, str]) -> None:
    model, twin = network(), network()
    zo = estimator(*case, model)
    expected = zo.estimate(X, Y)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = zo.backward(X, Y)
    assert torch.equal(loss, expected.loss)
    assert (zo.step, zo.queries) == (1, expected.queries)
    for name, p in model.named_parameters():
        assert torch.equal(p, kept[name])
        assert p.grad is None if name not in expected.gradients else torch.equal(p.grad, expected.gradients[name])
    twin(X)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=1e-14, atol=0)


def test_continues_bitwise_from_its_state(case: tuple[str, str, str]) -> None:
    model = network()
    first = estimator(*case, model)
    first.backward(X, Y)
    second = estimator(*case, model)
    second.load_state_dict(first.state_dict())
    a, b = first.estimate(X, Y), second.estimate(X, Y)
    assert all(torch.equal(a.gradients[name], b.gradients[name]) for name in a.gradients)
    assert (second.step, second.queries) == (first.step, first.queries)


def test_a_loss_that_is_not_finite(case: tuple[str, str, str]) -> None:
    model = network()
    zo = estimator(*case, model, loss=lambda o, t: torch.log(o.sum() * 0 - 1))
    with nothing_changes(model), pytest.raises(NonFiniteLossError, match="loss at the current parameters is nan"):
        zo.backward(X, Y)
    assert (zo.step, zo.queries) == (0, 0)


def test_perturbed_losses_that_are_not_finite(case: tuple[str, str, str]) -> None:
    """The base loss is finite, but the logarithm's domain ends right beside it."""
    model = initialize(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    zo = estimator(*case, model, loss=lambda o, t: torch.log(o - t).sum(), step_size=5.0)
    with (
        nothing_changes(model),
        pytest.raises(NonFiniteLossError, match=r"perturbed losses are not finite.*lower the step"),
    ):
        zo.backward(torch.tensor([[-1.0, -0.5], [-0.5, -1.0]]).double(), torch.tensor([[-0.6], [0.4]]).double())


def test_labels_out_of_range(case: tuple[str, str, str]) -> None:
    model = network()
    zo = estimator(*case, model)
    with nothing_changes(model), pytest.raises(InvalidInputError, match=r"class labels.* must lie in \[0, "):
        zo.backward(X, Y + 1)


@pytest.mark.parametrize(("probe", "evaluator"), REFUSED)
def test_evaluators_refuse_what_they_cannot_evaluate(probe: str, evaluator: str) -> None:
    with pytest.raises(InvalidInputError, match=r"evaluator=dz.SequentialEvaluator\(\)"):
        estimator(probe, evaluator, "forward", network()).estimate(X, Y)


@pytest.mark.parametrize("evaluator", ["batched", "propagation"])
def test_evaluators_of_networks_refuse_a_black_box(evaluator: str) -> None:
    box = dz.BlackBox(lambda p: 0.0, {"w": torch.zeros(2)})
    probes = PROBES["coordinates" if evaluator == "propagation" else "gaussian"]()
    zo = dz.Estimator(box, probes=probes, evaluator=EVALUATORS[evaluator][0](), step_size=1e-3)
    with pytest.raises(InvalidInputError, match=r"nn.Module; use evaluator=dz.SequentialEvaluator\(\)"):
        zo.estimate()
