"""The conformance suite on a GPU: as the oracle there, as the CPU, nothing changed, same bits twice and from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_suite import PROBES, STENCILS, SUITE, X, Y, estimator, network
from oracle import assert_close, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.errors import NonFiniteLossError
from deepzero.objective import parameters_of

pytestmark = pytest.mark.gpu
There = Callable[[Any], Any]


@pytest.fixture(params=SUITE, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in tensors.items()}


def slopes_on_the_cpu(zo: dz.Estimator, batch: tuple[Tensor, Tensor], twin: nn.Module) -> dict[str, Tensor]:
    """The estimate by definition, of the directions that the device draws, by full forwards of ``twin`` on the CPU."""
    perturbations = zo.probes.draw(StepContext(zo.step, zo.epoch, zo.objective, batch))
    objective, start = dz.NetworkObjective(twin, F.cross_entropy), parameters_of(zo.objective)
    base, slopes = objective.evaluate(parameters_of(objective), (X, Y), seed=0).loss, []
    for k in range(len(perturbations)):
        moved = [on_cpu(perturbations.displace(start, k, t * zo.step_size)) for t in zo.stencil.nodes]
        losses = [objective.evaluate(point, (X, Y), seed=0).loss for point in moved]
        weighted = [w * (loss - base) for w, loss in zip(zo.stencil.weights, losses, strict=True)]
        slopes.append(sum(weighted) / zo.step_size)
    return on_cpu(perturbations.combine(torch.stack(slopes).to(batch[0].device), None))


def test_agrees_with_the_oracle_there(case: tuple[str, str, str], there: There) -> None:
    probe, _, stencil = case
    model, batch = there(network()), there((X, Y))
    zo = estimator(*case, model, seed=4)
    expected = estimator(probe, "sequential", stencil, model, seed=4).estimate(*batch)
    with nothing_changes(model):
        found, again = zo.estimate(*batch), zo.estimate(*batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert_close(found.gradients, expected.gradients)
    assert found.queries == expected.queries
    assert torch.equal(found.loss, again.loss)
    for name, value in found.gradients.items():
        assert torch.equal(value, again.gradients[name])
        assert value.device == batch[0].device


def test_agrees_with_the_cpu(case: tuple[str, str, str], there: There) -> None:
    model, batch = there(network(dropout=0.0)), there((X, Y))
    zo = estimator(*case, model)
    found = zo.estimate(*batch)
    expected = slopes_on_the_cpu(zo, batch, network(dropout=0.0))
    torch.testing.assert_close(
        found.loss.cpu(), F.cross_entropy(network(dropout=0.0)(X), Y).detach(), rtol=1e-10, atol=0
    )
    assert_close(on_cpu(found.gradients), expected)


def test_coordinates_agree_with_an_estimate_on_the_cpu(there: There) -> None:
    """Both by difference propagation: compiled loops on the CPU, plain operations elsewhere."""
    for stencil in STENCILS:
        found = estimator("coordinates", "propagation", stencil, there(network(0.0))).estimate(*there((X, Y)))
        expected = estimator("coordinates", "propagation", stencil, network(0.0)).estimate(X, Y)
        assert_close(on_cpu(found.gradients), expected.gradients)


def test_backward_fills_grad_and_moves_the_statistics_once(case: tuple[str, str, str], there: There) -> None:
    model, twin, (x, y) = there(network()), there(network()), there((X, Y))
    zo = estimator(*case, model)
    expected = zo.estimate(x, y)
    loss = zo.backward(x, y)
    assert torch.equal(loss, expected.loss)
    assert (zo.step, zo.queries) == (1, expected.queries)
    for name, p in model.named_parameters():
        assert p.grad is None if name not in expected.gradients else torch.equal(p.grad, expected.gradients[name])
    twin(x)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=1e-12, atol=0)


def test_continues_bitwise_from_its_state(case: tuple[str, str, str], there: There) -> None:
    model, batch = there(network()), there((X, Y))
    first, second = estimator(*case, model), estimator(*case, model)
    first.backward(*batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    a, b = first.estimate(*batch), second.estimate(*batch)
    assert all(torch.equal(a.gradients[name], b.gradients[name]) for name in a.gradients)
    assert (second.step, second.queries) == (first.step, first.queries)


@pytest.mark.parametrize("probe", PROBES)
def test_draws_do_not_depend_on_the_global_generators(probe: str, there: There) -> None:
    evaluator = "propagation" if probe == "coordinates" else "batched"
    model, batch = there(network()), there((X, Y))
    zo = estimator(probe, evaluator, "forward", model)
    first = zo.estimate(*batch)
    torch.rand(7)
    torch.rand(7, device=batch[0].device)
    second = zo.estimate(*batch)
    assert all(torch.equal(value, second.gradients[name]) for name, value in first.gradients.items())


def test_losses_that_are_not_finite(case: tuple[str, str, str], there: There) -> None:
    model, batch = there(network()), there((X, Y))
    zo = estimator(*case, model, loss=lambda o, t: torch.log(o.sum() * 0 - 1))
    with nothing_changes(model), pytest.raises(NonFiniteLossError, match="loss at the current parameters is nan"):
        zo.backward(*batch)
    assert (zo.step, zo.queries) == (0, 0)
