"""The same black box in every way through a network: autograd, CGE and RGE by every evaluator, another black box."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deepzero as dz

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1, 0])
W = np.random.default_rng(0).normal(size=(6, 6))


def box_of_numpy(z: np.ndarray) -> np.ndarray:
    return np.tanh(z @ W) * 2


def network(**options: object) -> nn.Module:
    torch.manual_seed(0)
    box = dz.Opaque(box_of_numpy, numpy=True, **options)  # type: ignore[arg-type]
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), box, nn.LayerNorm(6), nn.Linear(6, 3)).double()


def reference() -> dict[str, Tensor]:
    """The gradient by autograd through the same arithmetic."""

    class Torch(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(z @ torch.from_numpy(W)) * 2

    model = network()
    model[2] = Torch()
    F.cross_entropy(model(X), Y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_backward() -> None:
    model = network(directions="coordinates")
    F.cross_entropy(model(X), Y).backward()
    for name, expected in reference().items():
        assert torch.allclose(model.get_parameter(name).grad, expected, rtol=1e-6, atol=1e-9), name


@pytest.mark.parametrize("evaluator", ["auto", "sequential", "batched", dz.PropagationEvaluator()])
def test_coordinates_of_what_lies_around_it(evaluator: object) -> None:
    """No evaluator falls back or warns, and all give the sequential oracle's numbers."""
    expected = reference()
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error", dz.SlowQueriesWarning)
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-5, stencil="central", evaluator=evaluator)
        found = zo.estimate(X, Y).gradients
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-8), name


def test_random_directions() -> None:
    found = [
        dz.RGE(network(), loss=F.cross_entropy, queries=3, seed=1, step_size=1e-4, evaluator=evaluator).estimate(X, Y)
        for evaluator in ("auto", "sequential", "batched", "propagation")
    ]
    for other in found[1:]:
        for name, gradient in found[0].gradients.items():
            assert torch.allclose(gradient, other.gradients[name], rtol=1e-5, atol=1e-8), name


def test_what_a_first_step_asks_besides() -> None:
    """Once: the program by itself and again, whether it follows its parameters, two points nearby: five batches;
    and whether its rows depend on each other: two rows."""
    model = network()
    dz.CGE(model, loss=F.cross_entropy).estimate(X, Y)
    assert model[2].queries == len(X) * (1 + 5 + 4 * 6 + 6) + 2


@pytest.mark.parametrize("evaluator", ["auto", "sequential", "batched", "propagation"])
def test_parameters_of_its_own_are_estimated_with_the_others(evaluator: str) -> None:
    torch.manual_seed(0)
    inner = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), dz.Opaque(inner), nn.Linear(6, 3)).double()
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-5, stencil="central", evaluator=evaluator)
    found = zo.estimate(X, Y).gradients
    F.cross_entropy(nn.Sequential(*model[:2], inner, model[3])(X), Y).backward()
    for name, gradient in found.items():
        assert torch.allclose(gradient, model.get_parameter(name).grad, rtol=1e-5, atol=1e-8), name


def test_noise_is_no_gradient_in_silence() -> None:
    """A difference of noisy answers is noise over the step: refused, unless full forwards are asked for."""
    noise = np.random.default_rng(1)
    model = nn.Sequential(
        nn.Linear(4, 6), dz.Opaque(lambda z: z + noise.normal(size=z.shape), numpy=True), nn.Linear(6, 3)
    ).double()
    with pytest.raises(dz.errors.VerificationError, match="not a deterministic function"):
        dz.CGE(model, loss=F.cross_entropy).estimate(X, Y)
    dz.CGE(model, loss=F.cross_entropy, evaluator="sequential").estimate(X, Y)


COUPLED = {
    "batch norm": lambda: dz.Opaque(nn.BatchNorm1d(6, affine=False)),
    "centred": lambda: dz.Opaque(lambda z: (z - z.mean(0)) ** 3),
    "declared": lambda: dz.Opaque(lambda z: (z - z.mean(0)) ** 3, coupled=True),
}


def around(box: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), box, nn.Linear(6, 3)).double()


@pytest.mark.parametrize("kind", COUPLED)
def test_rows_that_depend_on_each_other_are_not_asked_with_those_of_other_queries(kind: str) -> None:
    options = {"loss": F.cross_entropy, "step_size": 1e-5, "stencil": "central"}
    expected = dz.CGE(around(COUPLED[kind]()), evaluator="sequential", **options).estimate(X, Y).gradients
    for evaluator in ("auto", "propagation") if kind == "batch norm" else ("auto", "propagation", "batched"):
        found = dz.CGE(around(COUPLED[kind]()), evaluator=evaluator, **options).estimate(X, Y).gradients
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-6, atol=1e-9), (evaluator, name)


@pytest.mark.parametrize(
    "box",
    [nn.Dropout(0.5), lambda z: z + torch.rand_like(z), lambda z: z + torch.from_numpy(np.random.normal(size=z.shape))],  # noqa: NPY002
    ids=["dropout", "torch", "numpy"],
)
def test_what_a_black_box_draws_is_not_had_in_common(box: object) -> None:
    """Queries of other sizes draw other numbers; one forward a query draws the same, because it is seeded alike."""
    with pytest.raises(dz.errors.VerificationError, match=r"so may a dz\.Opaque inside of it"):
        dz.CGE(around(dz.Opaque(box)), loss=F.cross_entropy).estimate(X, Y)  # type: ignore[arg-type]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    zo = dz.CGE(around(dz.Opaque(box)), loss=F.cross_entropy, evaluator="sequential", step_size=1e-6)  # type: ignore[arg-type]
    found = zo.estimate(X, Y).gradients
    assert all(float(gradient.abs().max()) < 10 for gradient in found.values())
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_one_call_at_a_time() -> None:
    """Whatever the evaluator's workers: few functions can be called from several threads."""
    inside, most = [0], [0]

    def fn(z: Tensor) -> Tensor:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1
        return torch.tanh(z)

    evaluator = dz.PropagationEvaluator(workers=3, chunk_bytes=1)
    dz.CGE(around(dz.Opaque(fn)), loss=F.cross_entropy, evaluator=evaluator).estimate(X, Y)
    assert most == [1]


def test_second_derivatives_are_refused() -> None:
    box, z = dz.Opaque(torch.tanh), X.clone().requires_grad_()
    with pytest.raises(dz.errors.InvalidInputError, match="no second derivatives"):
        torch.autograd.grad(box(z).sum(), z, create_graph=True)


def test_a_black_box_lives_as_long_as_its_history() -> None:
    z = X.clone().requires_grad_()
    dz.Opaque(torch.tanh, directions="coordinates")(z).sum().backward()
    assert torch.allclose(z.grad, 1 - torch.tanh(X) ** 2, rtol=1e-6)


def test_an_attribute_of_somebody_elses_is_no_handle() -> None:
    class Held(nn.Linear):
        _handle = [1]  # noqa: RUF012

    held, number = Held(4, 3).double(), nn.Linear(4, 3).double()
    number._handle = dz.Opaque(torch.tanh)._handle
    for model in (held, number):
        assert dz.RGE(model, loss=F.cross_entropy, queries=2).estimate(X, Y).queries == 3


def test_random_directions_ask_once_for_the_base_and_for_each_direction() -> None:
    model = network()
    zo = dz.RGE(model, loss=F.cross_entropy, queries=7)
    zo.estimate(X, Y)
    before = model[2].queries
    zo.estimate(X, Y)
    assert model[2].queries - before == len(X) * (1 + 7)


def test_propagation_asks_once_for_the_base_and_for_each_perturbation_in_front() -> None:
    """Exact after it: parameters behind the black box cost it nothing."""
    model = network()
    zo = dz.CGE(model, loss=F.cross_entropy)
    zo.estimate(X, Y)
    before, calls = model[2].queries, model[2].calls
    found = zo.estimate(X, Y)
    in_front = 4 * 6 + 6
    assert model[2].queries - before == len(X) * (1 + in_front)
    assert model[2].calls - calls <= 1 + 2 + 6  # chunks share a parameter (and a channel), and each is one call
    assert found.queries == 1 + sum(p.numel() for p in model.parameters())


def test_samples_that_a_perturbation_does_not_reach_are_not_asked_about() -> None:
    torch.manual_seed(0)
    box = dz.Opaque(box_of_numpy, numpy=True)
    model = nn.Sequential(nn.Embedding(9, 6), box, nn.Linear(6, 3)).double()
    tokens = torch.tensor([0, 1, 2, 2])
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-5)
    zo.estimate(tokens, Y[:4])
    before = box.queries
    found = zo.estimate(tokens, Y[:4])
    assert box.queries - before == 4 + 4 * 6  # the base, and each sample at the six entries of its own row
    plain = dz.CGE(model, loss=F.cross_entropy, step_size=1e-5, evaluator="sequential").estimate(tokens, Y[:4])
    assert torch.allclose(found.gradients["0.weight"], plain.gradients["0.weight"], rtol=1e-5, atol=1e-8)


def test_one_by_one_what_lies_behind_costs_nothing_either() -> None:
    """A question that was answered in the base query is not asked again in its step."""
    model = network()
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator="sequential")
    zo.estimate(X, Y)
    before = model[2].queries
    zo.estimate(X, Y)
    assert model[2].queries - before == len(X) * (1 + 4 * 6 + 6)


def test_a_noisy_black_box_has_its_base_answer_in_common() -> None:
    """So behind it no slope is noise."""
    noise = np.random.default_rng(1)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), dz.Opaque(lambda z: z + noise.normal(size=z.shape), numpy=True), nn.Linear(6, 3)
    ).double()
    zo = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False))
    found = zo.estimate(X, Y).gradients["2.bias"]
    assert float(found.abs().max()) < 1


def test_a_step_from_the_noise_measures_it() -> None:
    """Answers in float32 are rounded, however the differences around them are carried."""
    torch.manual_seed(0)
    box = dz.Opaque(lambda z: (np.tanh(z @ W) * 2).astype(np.float32), numpy=True)
    model = nn.Sequential(nn.Linear(4, 6), box, nn.Linear(6, 3))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size="auto")
    zo.estimate(X.float(), Y)
    assert zo.state_dict()["noise"] > 0


def test_inside_of_a_black_box() -> None:
    inner = dz.Opaque(box_of_numpy, numpy=True)

    def fn(p: dict[str, Tensor]) -> float:
        return float(inner(p["z"].reshape(1, 6)).sum())

    box = dz.BlackBox(fn, {"z": torch.zeros(6, dtype=torch.float64)})
    found = dz.CGE(box, step_size=1e-6).estimate().gradients["z"]
    assert torch.allclose(found, torch.from_numpy(2 * W.sum(1)), rtol=1e-4)
    assert inner.queries == 7


def test_no_gradient_no_query_but_the_forward() -> None:
    model = network()
    with torch.no_grad():
        model(X)
    model[0].requires_grad_(False)
    F.cross_entropy(model(X), Y).backward()
    assert model[2].queries == 2 * len(X)


def test_several_inputs() -> None:
    def fn(a: Tensor, b: Tensor, index: Tensor) -> Tensor:
        return torch.sin(a) @ torch.ones(4, 2, dtype=torch.float64) * b + index.unsqueeze(1)

    box = dz.Opaque(fn, directions="orthogonal", queries=6)
    a, b = X.clone().requires_grad_(), X[:, :2].clone().requires_grad_()
    index = torch.arange(5)
    box(a, b, index).square().sum().backward()
    c, d = X.clone().requires_grad_(), X[:, :2].clone().requires_grad_()
    fn(c, d, index).square().sum().backward()
    assert torch.allclose(a.grad, c.grad, rtol=1e-6, atol=1e-8)
    assert torch.allclose(b.grad, d.grad, rtol=1e-6, atol=1e-8)


class Score(nn.Module):
    """One number a sample."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (z[:, 0] * z[:, 1] - y).square()


@pytest.mark.parametrize(
    "options",
    [
        {"queries": 2},
        {"queries": 2, "policy": dz.QueryPolicy(on_nan="skip")},
        {"queries": 1, "surrogate": Score()},
        {"queries": 12, "coupled": True},  # all entries of all six rows
    ],
    ids=["rows", "policy", "surrogate", "coupled"],
)
def test_a_row_of_the_output_may_be_a_single_number(options: dict[str, object]) -> None:
    """An output of shape [b], as the score of each sample has it."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    front = nn.Linear(3, 2).double()
    exact = torch.autograd.grad(Score()(front(x), y).mean(), front.weight)[0]
    box = dz.Opaque(lambda z, y: (z[:, 0] * z[:, 1] - y).square(), **options)  # type: ignore[arg-type]
    box(front(x), y).mean().backward()
    assert front.weight.grad is not None
    assert torch.allclose(front.weight.grad, exact, rtol=1e-4)
    zo = dz.CGE(nn.ModuleList([front, box]), closure=lambda m, x, y: m[1](m[0](x), y).mean(), step_size=1e-6)
    assert torch.allclose(zo.estimate(x, y).gradients["0.weight"], exact, rtol=1e-3)
