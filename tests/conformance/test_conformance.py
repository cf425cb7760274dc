"""Every probe on every evaluator with every stencil, on the same problem: same numbers, nothing changed, same bits twice."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from conformance_suite import EVALUATORS, PROBES, STENCILS, SUITE, X, Y, estimator, network
from oracle import assert_close, exported_once, initialize, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.coordinates import StepContext
from deepzero.errors import InvalidInputError, NonFiniteLossError
from deepzero.evaluators import StepQueries
from deepzero.graph.capture import Graph
from deepzero.randomness import derive_seed


@pytest.fixture(params=SUITE, ids="-".join)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    return request.param


def pairs() -> list[tuple[str, str, str]]:
    """Every probe with every evaluator, the stencils in turn: where a step is refused, the three know nothing of each other."""
    both = list(dict.fromkeys((probe, evaluator) for probe, evaluator, _ in SUITE))
    probes, stencils = list(PROBES), list(STENCILS)
    return [
        (probe, evaluator, stencils[(probes.index(probe) + list(EVALUATORS).index(evaluator)) % len(stencils)])
        for probe, evaluator in both
    ]


@pytest.fixture(params=pairs(), ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@functools.cache
def by_the_oracle(probe: str, stencil: str) -> dz.Estimate:
    """One full forward a query."""
    return estimator(probe, "sequential", stencil, network(), seed=4).estimate(X, Y)


GRAPHS: list[Graph] = []
"""That of the network, once some test has exported it."""


def test_agrees_with_the_oracle(case: tuple[str, str, str]) -> None:
    probe, _, stencil = case
    model = network()
    zo = estimator(*case, model, seed=4)
    expected = by_the_oracle(probe, stencil)
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
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with exported_once(GRAPHS):
        expected = zo.estimate(X, Y)
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
    first, second = estimator(*case, model), estimator(*case, model)
    with exported_once(GRAPHS):
        first.backward(X, Y)
        second.load_state_dict(first.state_dict())
        a, b = first.estimate(X, Y), second.estimate(X, Y)
    assert all(torch.equal(a.gradients[name], b.gradients[name]) for name in a.gradients)
    assert (second.step, second.queries) == (first.step, first.queries)


def test_a_loss_that_is_not_finite(pair: tuple[str, str, str]) -> None:
    model = network()
    zo = estimator(*pair, model, loss=lambda o, t: torch.log(o.sum() * 0 - 1))
    with nothing_changes(model), pytest.raises(NonFiniteLossError, match="loss at the current parameters is nan"):
        zo.backward(X, Y)
    assert (zo.step, zo.queries) == (0, 0)


def test_perturbed_losses_that_are_not_finite(pair: tuple[str, str, str]) -> None:
    """The base loss is finite, but the logarithm's domain ends right beside it."""
    model = initialize(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    zo = estimator(*pair, model, loss=lambda o, t: torch.log(o - t).sum(), step_size=5.0)
    with (
        nothing_changes(model),
        pytest.raises(NonFiniteLossError, match=r"perturbed losses are not finite.*lower the step"),
    ):
        zo.backward(torch.tensor([[-1.0, -0.5], [-0.5, -1.0]]).double(), torch.tensor([[-0.6], [0.4]]).double())


def test_labels_out_of_range(pair: tuple[str, str, str]) -> None:
    """The user's own mistake, as PyTorch says it."""
    model = network()
    zo = estimator(*pair, model)
    with nothing_changes(model), pytest.raises(IndexError, match="out of bounds"):
        zo.backward(X, Y + 1)


@pytest.mark.parametrize("evaluator", ["batched", "propagation"])
def test_evaluators_of_networks_refuse_a_black_box(evaluator: str) -> None:
    box = dz.BlackBox(lambda p: 0.0, {"w": torch.zeros(2)})
    probes = PROBES["coordinates" if evaluator == "propagation" else "gaussian"]()
    zo = dz.Estimator(box, probes=probes, evaluator=EVALUATORS[evaluator][0](), step_size=1e-3)
    with pytest.raises(InvalidInputError, match=r"nn.Module; use evaluator=dz.SequentialEvaluator\(\)"):
        zo.estimate()


class Between(nn.Module):
    """A random operation between two layers, in some memory layout."""

    def __init__(self, draw: Callable[[Tensor], Tensor], layout: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3), nn.Linear(27, 3)
        self.draw, self.layout = draw, layout

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layout(self.first(x))
        return self.last(self.draw(hidden).reshape(len(x), -1))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda z: F.dropout(z, 0.4),
    "channel dropout": lambda z: F.dropout2d(z, 0.4),
    "alpha dropout": lambda z: F.alpha_dropout(z, 0.4, training=True),
    "stochastic depth": lambda z: z * z.new_empty(len(z), 1, 1, 1).bernoulli_(0.7),
    "noise": lambda z: z + 0.3 * torch.randn_like(z),
    "uniform": lambda z: z * (0.5 + torch.rand(z.shape, dtype=z.dtype)).floor(),
    "permutation": lambda z: z + z[torch.randperm(len(z))],
    "gumbel": lambda z: F.gumbel_softmax(z, dim=1),
    "attention": lambda z: F.scaled_dot_product_attention(z, z, z, dropout_p=0.3),
    "rrelu": lambda z: F.rrelu(z, training=True),
    "samples": lambda z: z + torch.bernoulli(torch.sigmoid(z)),
    "normal": lambda z: torch.normal(z, 0.5),
    "python": lambda z: z * (1 + __import__("random").random()),
    "numpy": lambda z: z * (1 + __import__("numpy").random.rand()),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda z: z,
    "channels_last": lambda z: z.contiguous(memory_format=torch.channels_last),
    "transposed": lambda z: z.transpose(2, 3),
    "expanded": lambda z: z.mean(3, keepdim=True).expand(z.shape),
}
QUERIES = [(p, e) for p in PROBES if p not in ("rademacher", "sphere") for e in EVALUATORS if p in EVALUATORS[e][1]]
"""Every kind of directions with every evaluator that accepts it; one distribution stands for all of random directions."""


@pytest.mark.filterwarnings("ignore::deepzero.SlowQueriesWarning")
@pytest.mark.parametrize(
    ("draw", "layout"),
    [
        (draw, layout)
        for draw in DRAWS
        for layout in LAYOUTS
        if draw in ("dropout", "attention") or layout == "transposed"
    ],
)
def test_a_displacement_of_zero_is_the_base_loss(draw: str, layout: str) -> None:
    """Bit for bit, for every evaluator and probe; and all of them see the same random numbers, so they agree."""
    model = initialize(Between(DRAWS[draw], LAYOUTS[layout])).to(memory_format=torch.channels_last)
    objective = dz.NetworkObjective(model, F.cross_entropy)
    expected: dict[str, Tensor] = {}
    evaluators = {name: made() for name, (made, _) in EVALUATORS.items()}  # which keep their graph from probe to probe
    for probe, name in QUERIES:
        evaluator = evaluators[name]
        perturbations = PROBES[probe]().draw(StepContext(0, 0, objective, (X, Y)))
        perturbations.taken = lambda _, offsets, names=None, p=perturbations: p.nominal(
            offsets
        )  # a step of zero is no mistake here
        try:
            still = evaluator.measure(StepQueries(objective, (X, Y), perturbations, [0.0], seed=3))
            moved = evaluator.measure(StepQueries(objective, (X, Y), perturbations, [1e-3], seed=3))
        except dz.DeepZeroError:
            assert name in ("batched", "propagation")  # they say so, and the default takes another way
            continue
        assert not still.differences.any(), f"{probe} {name}"
        reference = expected.setdefault(probe, moved.differences)
        torch.testing.assert_close(moved.differences, reference, rtol=1e-6, atol=1e-9, msg=f"{probe} {name}")


@pytest.mark.filterwarnings("ignore::deepzero.SlowQueriesWarning")
def test_masks_do_not_depend_on_what_other_threads_draw() -> None:
    model = initialize(Between(DRAWS["dropout"], LAYOUTS["channels_last"]))
    ways = [(p, e) for p, e in QUERIES if e != "batched"]  # vmap knows no channels_last
    alone = [estimator(p, e, "forward", model).estimate(X, Y) for p, e in ways]
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(3)

    noisy = threading.Thread(target=draw)
    noisy.start()
    try:
        beside = [estimator(p, e, "forward", model).estimate(X, Y) for p, e in ways]
    finally:
        stop.set()
        noisy.join()
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert all(torch.equal(g, other.gradients[n]) for n, g in one.gradients.items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_are_pytorchs_own(layout: str) -> None:
    """The numbers of ``torch.manual_seed`` with the step's seed, in any layout."""
    model = initialize(Between(DRAWS["dropout"], LAYOUTS[layout]))
    zo = estimator("coordinates", "auto", "forward", model, step_size=1e-6, seed=5)
    found = zo.estimate(X, Y)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(5, "objective", 0))
        loss = F.cross_entropy(model(X), Y)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=0)
    exact = dict(zip(found.gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    assert_close(found.gradients, exact, 1e-5)
