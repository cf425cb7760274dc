"""A program sees a query's parameters wherever it looks for them, and leaves the user's model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import deepzero as dz
from deepzero.errors import InvalidInputError

X, Y = normal(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
STEP = 1e-6
Program = Callable[..., Any]

pytestmark = pytest.mark.filterwarnings("ignore::deepzero.errors.SlowQueriesWarning")


def linear() -> nn.Linear:
    return initialize(nn.Linear(4, 3))


def slopes(objective: dz.NetworkObjective, batch: tuple[Any, ...]) -> dict[str, Tensor]:
    """The gradient by autograd, at the objective's parameters."""
    own = dict(objective.named_parameters())
    value = objective.program(objective.model, *batch)
    gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(own.items(), gradients, strict=True)}


def along(zo: dz.Estimator, gradient: dict[str, Tensor], batch: tuple[Any, ...]) -> dict[str, Tensor]:
    """What random directions give of a known gradient."""
    context = dz.coordinates.StepContext(0, 0, zo.objective, batch)
    directions = zo.probes.draw(context)
    found = {name: torch.zeros_like(g) for name, g in gradient.items()}
    for k in range(len(directions)):
        u = directions.direction(k)
        slope = sum(float((u[name] * g).sum()) for name, g in gradient.items())
        for name in found:
            found[name] += slope * u[name] / len(directions)
    return found


WAYS: dict[str, Callable[..., dz.Estimator]] = {
    "cge": dz.CGE,
    "cge one by one": lambda model, **options: dz.CGE(model, evaluator="sequential", **options),
    "rge": lambda model, **options: dz.RGE(model, queries=3, **options),
    "rge one by one": lambda model, **options: dz.RGE(model, queries=3, evaluator="sequential", **options),
}


def assert_exact(way: str, model: nn.Module, batch: tuple[Any, ...] = (X, Y), **program: Any) -> dz.Estimator:
    """An estimate at a small step is autograd's gradient, and changes nothing."""
    zo = WAYS[way](model, step_size=STEP, **program)
    expected = (
        slopes(dz.NetworkObjective(copy.deepcopy(model), **copy.deepcopy(program)), batch)
        if not program.pop("shared", False)
        else None
    )
    if expected is None:
        expected = slopes(zo.objective, batch)
    expected = expected if way.startswith("cge") else along(zo, expected, batch)
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    with nothing_changes(model):
        found = zo.estimate(*batch)
    for module, before in attributes:
        assert module.__dict__.keys() == before.keys()
        assert all(module.__dict__[name] is value for name, value in before.items())
    assert_close(found.gradients, expected, 1e-4)
    return zo


def penalty(parameters: Any) -> Tensor:
    return 0.1 * sum(p.square().sum() for p in parameters)


CLOSURES: dict[str, Program] = {
    "parameters": lambda m, x, y: F.cross_entropy(m(x), y) + penalty(m.parameters()),
    "trainable": lambda m, x, y: (
        F.cross_entropy(m(x), y) + penalty(p for _, p in m.named_parameters() if p.requires_grad)
    ),
    "instances": lambda m, x, y: (
        F.cross_entropy(m(x), y) + penalty(p for p in m.parameters() if isinstance(p, nn.Parameter))
    ),
    "state_dict": lambda m, x, y: F.cross_entropy(m(x), y) + penalty(m.state_dict(keep_vars=True).values()),
    "get_parameter": lambda m, x, y: F.cross_entropy(m(x), y) + m.get_parameter("weight").abs().sum(),
    "vector": lambda m, x, y: F.cross_entropy(m(x), y) + nn.utils.parameters_to_vector(m.parameters()).square().sum(),
    "second forward": lambda m, x, y: F.cross_entropy(m(x), y) + m(2 * x).square().mean(),
    "functional call": lambda m, x, y: F.cross_entropy(
        torch.func.functional_call(m, dict(m.named_parameters()), (x,)), y
    ),
    "a copy inside": lambda m, x, y: F.cross_entropy(m(x), y) + copy.deepcopy(m)(x).square().mean(),
    "checkpoint": lambda m, x, y: F.cross_entropy(torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False), y),
    "jacobian": lambda m, x, y: torch.func.vmap(torch.func.jacrev(m))(x).square().sum() + F.cross_entropy(m(x), y),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CLOSURES)
def test_whatever_a_closure_reads(name: str, way: str) -> None:
    if name == "a copy inside":  # a deep copy has no history: autograd's gradient lacks it, the function's has it
        model = linear()
        twin = lambda m, x, y: F.cross_entropy(m(x), y) + m(x).square().mean()  # noqa: E731
        found, expected = (
            WAYS[way](model, closure=c, step_size=STEP).estimate(X, Y).gradients for c in (CLOSURES[name], twin)
        )
        assert_close(found, expected, 1e-4)
        return
    assert_exact(way, linear(), closure=CLOSURES[name])


def inner_derivative(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(m(x).tanh().sum(), x, create_graph=True)
    return slope.square().mean() + F.cross_entropy(m(x), y)


def one_step_ahead(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """MAML: the loss after an inner step."""
    slopes = torch.autograd.grad(F.cross_entropy(m(x), y), list(m.parameters()), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(m.named_parameters(), slopes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(m, moved, (x,)), y)


def one_step_ahead_by_transform(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = lambda values: F.cross_entropy(torch.func.functional_call(m, values, (x,)), y)  # noqa: E731
    now = dict(m.named_parameters())
    slope = torch.func.grad(loss)(now)
    return loss({name: p - 0.1 * slope[name] for name, p in now.items()})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", [inner_derivative, one_step_ahead, one_step_ahead_by_transform])
def test_derivatives_inside(program: Program, way: str) -> None:
    assert_exact(way, linear(), closure=program)


def test_a_black_box_that_trains_inside() -> None:
    """The caller's grad mode holds inside; the user's own model stays."""
    start = linear()

    def fn(params: dict[str, Tensor]) -> float:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=float(params["lr"]))
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        return float(F.cross_entropy(model(X), Y).detach())

    with nothing_changes(start):
        estimate = dz.CGE(
            dz.BlackBox(fn, {"lr": torch.tensor(0.1, dtype=torch.float64)}), step_size=1e-4, stencil="central"
        ).estimate()
    by_hand = (fn({"lr": torch.tensor(0.11)}) - fn({"lr": torch.tensor(0.09)})) / 0.02
    assert float(estimate.gradients["lr"]) == pytest.approx(by_hand, rel=1e-2)


class Elsewhere(nn.Module):
    """A weight that the forward reaches by an attribute of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 3))
        held = {
            "list": [self.w],
            "dict": {"a": self.w},
            "tuple": (self.w,),
            "nested": {"a": [self.w]},
            "attribute": self.w,
        }[kind]
        object.__setattr__(self, "held", held)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self.held
        while not isinstance(held, Tensor):
            held = held["a"] if isinstance(held, dict) else held[0]
        return x @ held + x @ self.w.tanh()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["list", "dict", "tuple", "nested", "attribute"])
def test_references_of_a_module_s_own(kind: str, way: str) -> None:
    assert_exact(way, initialize(Elsewhere(kind)), loss=F.cross_entropy)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell = kind(4, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][..., :3]


@pytest.mark.parametrize("way", ["cge", "rge"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}], ids=["plain", "dropout in eval mode"])
def test_flat_weights_of_recurrent_networks(way: str, kind: type[nn.Module], options: dict[str, Any]) -> None:
    model = initialize(Recurrent(kind, **options)).eval()
    flat = list(model.cell._flat_weights)
    assert_exact(way, model, loss=F.cross_entropy)
    assert all(now is then for now, then in zip(model.cell._flat_weights, flat, strict=True))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_networks_are_propagated_past(kind: type[nn.Module]) -> None:
    """They draw nothing where they drop nothing: no detour, no warning."""
    zo = dz.CGE(initialize(Recurrent(kind)), loss=F.cross_entropy, strict=True)
    zo.estimate(X, Y)
    assert zo.explain().startswith("last step: propagation")


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return initialize(model)


def under(parametrization: Callable[[nn.Linear], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            return parametrization(linear())

    return build


PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "tied": tied,
    "weight norm": under(parametrizations.weight_norm),
    "spectral norm": under(lambda layer: parametrizations.spectral_norm(layer).eval()),
    "orthogonal": under(lambda layer: parametrizations.orthogonal(layer, orthogonal_map="matrix_exp")),
    "softplus": under(lambda layer: parametrize.register_parametrization(layer, "weight", nn.Softplus())),
    "parameter list": lambda: nn.ModuleList([linear()]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PARAMETRIZED)
def test_tied_and_parametrized_weights(name: str, way: str) -> None:
    closure = lambda m, x, y: F.cross_entropy((m[0] if isinstance(m, nn.ModuleList) else m)(x), y)  # noqa: E731
    model = PARAMETRIZED[name]()
    zo = dz.NetworkObjective(model, closure=closure)
    expected = slopes(zo, (X, Y))
    estimator = WAYS[way](model, closure=closure, step_size=STEP)
    expected = expected if way.startswith("cge") else along(estimator, expected, (X, Y))
    with nothing_changes(model):
        found = estimator.estimate(X, Y)
    assert_close(found.gradients, expected, 1e-4)


class Scaled(nn.Module):
    """A criterion with a parameter, and perhaps one of the model's."""

    def __init__(self, shared: nn.Parameter | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.shared = shared

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        extra = 0 if self.shared is None else 0.1 * self.shared.square().sum()
        return F.cross_entropy(output * self.log_scale.exp(), target) + self.log_scale + extra


class WithCriterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.criterion = nn.Linear(4, 3), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.criterion.log_scale


@pytest.mark.parametrize("way", WAYS)
class TestCriterion:
    def names(self, way: str, model: nn.Module, loss: nn.Module) -> list[str]:
        zo = WAYS[way](model, loss=loss, step_size=STEP)
        expected = slopes(zo.objective, (X, Y))
        expected = expected if way.startswith("cge") else along(zo, expected, (X, Y))
        with nothing_changes(model, loss):
            found = zo.estimate(X, Y)
        assert_close(found.gradients, expected, 1e-4)
        zo.backward(X, Y)
        assert all(p.grad is not None for p in (*model.parameters(), *loss.parameters()))
        return list(found.gradients)

    def test_its_parameters_are_estimated(self, way: str) -> None:
        assert self.names(way, linear(), Scaled()) == ["weight", "bias", "criterion.log_scale"]

    def test_a_model_with_a_criterion_of_its_own(self, way: str) -> None:
        model = initialize(WithCriterion())
        assert self.names(way, model, Scaled()) == [
            "layer.weight",
            "layer.bias",
            "criterion.log_scale",
            "criterion_.log_scale",
        ]
        assert self.names(way, model, model.criterion) == ["layer.weight", "layer.bias", "criterion.log_scale"]

    def test_one_that_shares_a_parameter(self, way: str) -> None:
        model = linear()
        assert self.names(way, model, Scaled(model.weight)) == ["weight", "bias", "criterion.log_scale"]


class TestArguments:
    def test_keywords_dicts_and_nested_batches(self) -> None:
        model = linear()
        plain = dz.CGE(model, loss=F.cross_entropy).estimate(X, Y).gradients

        def nested(m: nn.Module, batch: dict[str, Any], *, target: Any) -> Tensor:
            (x,) = batch["inputs"]
            return F.cross_entropy(m(x), target[0]["labels"])

        zo = dz.CGE(model, closure=nested)
        assert_close(zo.estimate({"inputs": [X]}, target=({"labels": Y},)).gradients, plain)
        assert float(zo.backward({"inputs": [X]}, target=({"labels": Y},))) == pytest.approx(
            float(F.cross_entropy(model(X), Y).detach())
        )

    @pytest.mark.parametrize("way", WAYS)
    def test_a_closure_that_takes_its_batch_apart(self, way: str) -> None:
        """``batch.pop("labels")`` empties a dict of the query's own."""
        model, batch = linear(), {"x": X, "labels": Y}

        def closure(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            labels = batch.pop("labels")
            return F.cross_entropy(m(input=batch["x"]), labels)

        found = WAYS[way](model, closure=closure).estimate(batch)
        assert batch.keys() == {"x", "labels"}
        expected = WAYS[way](model, loss=F.cross_entropy).estimate(X, Y)
        assert_close(found.gradients, expected.gradients, 1e-6)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("as_number", [float, np.float64, np.asarray, lambda v: v.reshape(1, 1)])
    def test_losses_that_are_numbers_of_another_kind(self, way: str, as_number: Any) -> None:
        model = linear()
        closure = lambda m, x, y: as_number(F.cross_entropy(m(x), y).detach())  # noqa: E731
        found = WAYS[way](model, closure=closure, step_size=STEP).estimate(X, Y)
        expected = WAYS[way](model, loss=F.cross_entropy, step_size=STEP).estimate(X, Y)
        assert_close(found.gradients, expected.gradients, 1e-4)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        ("closure", "message"),
        [
            (
                lambda m, x, y: m(x).sum().to(torch.complex128),
                "must be a real number, got a complex one; take .real or .abs",
            ),
            (lambda m, x, y: complex(1, 2), r"must be one real number .*got complex: \(1\+2j\)"),
            (
                lambda m, x, y: F.cross_entropy(m(x), y, reduction="none"),
                r"must be one number, got a tensor of shape \(6,\).*mean",
            ),
            (lambda m, x, y: {"loss": m(x).sum()}, "must be one real number .*got dict"),
            (lambda m, x, y: None, "must be one real number .*got NoneType"),
        ],
    )
    def test_losses_that_are_refused(self, way: str, closure: Program, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            WAYS[way](linear(), closure=closure).estimate(X, Y)

    @pytest.mark.parametrize("way", WAYS)
    def test_losses_per_sample_are_averaged(self, way: str) -> None:
        found, expected = (
            WAYS[way](linear(), loss=loss).estimate(X, Y).gradients
            for loss in (lambda o, t: F.cross_entropy(o, t, reduction="none"), F.cross_entropy)
        )
        assert_close(found, expected, 1e-6)

    @pytest.mark.parametrize("keywords", [{}, {"mask": 1}])
    def test_what_a_loss_is_called_with(self, keywords: dict[str, Any]) -> None:
        words = "got 3 and mask.*closure=" if keywords else "got 3. For any other"
        with pytest.raises(InvalidInputError, match=words):
            dz.CGE(linear(), loss=F.cross_entropy).estimate(X, Y, Y, **keywords)


class Quadratic:
    """An objective of neither kind."""

    def __init__(self) -> None:
        self.w = torch.tensor([1.0, -2.0], dtype=torch.float64)
        self.state = torch.zeros(())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield "w", self.w

    def evaluate(self, parameters: dict[str, Tensor], batch: tuple[Any, ...], *, seed: int) -> Any:
        return dz.objective.Evaluation(parameters["w"].square().sum(), {"state": self.state + 1})

    def commit(self, buffers: dict[str, Tensor]) -> None:
        self.state.copy_(buffers["state"])


@pytest.mark.parametrize("make", [dz.CGE, lambda objective, **options: dz.RGE(objective, queries=200, **options)])
def test_an_objective_of_another_kind(make: Any) -> None:
    objective = Quadratic()
    zo = make(objective, step_size=1e-6)
    assert float(zo.backward()) == 5.0
    assert float(objective.state) == 1.0
    assert torch.allclose(objective.w.grad, torch.tensor([2.0, -4.0]).double(), rtol=0.5)
    for missing in ("named_parameters", "evaluate", "commit"):
        broken = type(
            "Broken", (), {n: v for n, v in vars(Quadratic).items() if n not in (missing, "__dict__", "__weakref__")}
        )()
        with pytest.raises(InvalidInputError, match=rf"got Broken, which has no {missing}\(\)"):
            make(broken)
    with pytest.raises(InvalidInputError, match="a Quadratic returns its loss itself"):
        make(objective, loss=F.cross_entropy)


class Meddling(nn.Module):
    """A forward that adds to its own tables."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(4, 3), what

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "alias":
            self.alias = self.layer.weight
        elif self.what == "buffer" and not hasattr(self, "seen"):
            self.register_buffer("seen", x.mean())
        elif self.what == "layer" and not hasattr(self, "late"):
            self.late = nn.Linear(3, 3).double()
        return self.late(self.layer(x)) if hasattr(self, "late") else self.layer(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["alias", "buffer"])
def test_tables_of_a_module_stay_as_they_were(way: str, what: str) -> None:
    model = initialize(Meddling(what))
    with nothing_changes(model):
        WAYS[way](model, loss=F.cross_entropy).estimate(X, Y)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_made_in_the_forward_are_refused(way: str) -> None:
    model = initialize(Meddling("layer"))
    with (
        nothing_changes(model),
        pytest.raises(InvalidInputError, match=r"makes parameters \(late\).*run it once, model\(x\)"),
    ):
        WAYS[way](model, loss=F.cross_entropy).estimate(X, Y)
    model(X)
    assert "late.weight" in WAYS[way](model, loss=F.cross_entropy).estimate(X, Y).gradients


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "data parallel": (
        lambda: nn.DataParallel(linear()),
        r"wrapped in DataParallel; pass the network itself, model.module",
    ),
    "script": (lambda: torch.jit.trace(linear(), X), r"is a TorchScript module .*pass the Python module"),
    "lazy": (lambda: nn.LazyLinear(3), r"weight has no shape yet; run the lazy model once"),
    "meta": (
        lambda: nn.Linear(4, 3, device="meta"),
        r"weight is on the meta device and has no values; use model.to_empty",
    ),
    "class": (lambda: nn.Linear, r"got the type <class .*Linear"),
    "function": (lambda: lambda x: x, r"got the function .*dz.BlackBox"),
    "number": (lambda: 3, r"got int, which has no named_parameters\(\)"),
    "frozen": (lambda: linear().requires_grad_(False), r"no trainable parameter"),
}


@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_plain_network(name: str, make: Any) -> None:
    build, message = WRAPPED[name]
    with pytest.raises(InvalidInputError, match=message):
        make(build(), loss=F.cross_entropy)


@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
def test_distributed_data_parallel_is_refused_by_name(make: Any, tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with pytest.raises(InvalidInputError, match=r"wrapped in DistributedDataParallel.*model.module.*torchrun"):
            make(nn.parallel.DistributedDataParallel(linear()), loss=F.cross_entropy)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
def test_a_compiled_module_is_the_module_it_was_made_from(make: Any) -> None:
    model = linear()
    found = make(torch.compile(model), loss=F.cross_entropy).estimate(X, Y).gradients
    assert_close(found, make(model, loss=F.cross_entropy).estimate(X, Y).gradients)


def test_a_sparse_parameter_is_refused() -> None:
    model = linear()
    model.weight = nn.Parameter(model.weight.detach().to_sparse())
    with pytest.raises(InvalidInputError, match=r"weight is sparse; pass a dense one, p.to_dense"):
        dz.CGE(model, loss=F.cross_entropy)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ({}, "either loss=.*or closure="),
        ({"loss": F.cross_entropy, "closure": F.cross_entropy}, "either loss=.*or closure="),
        ({"closure": 3}, "closure must be callable as closure"),
        ({"loss": nn.CrossEntropyLoss}, r"loss is the class CrossEntropyLoss; make one: CrossEntropyLoss\(\)"),
    ],
)
def test_loss_or_closure(program: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.CGE(linear(), **program)


def test_an_objective_with_a_closure_has_no_loss() -> None:
    objective = dz.NetworkObjective(linear(), closure=lambda m, x: m(x).sum())
    with pytest.raises(InvalidInputError, match=r"works with loss=.*the objective has a closure"):
        _ = objective.loss


class TiedByView(nn.Module):
    """An autoencoder that decodes with the encoder's weight, through a view that its constructor made."""

    def __init__(self, *, detached: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 3).double()
        view = self.encoder.weight.t()
        self.decoder = view.detach() if detached else view

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.decoder)


@pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
@pytest.mark.parametrize("evaluator", ["auto", "sequential"])
def test_a_view_of_a_parameter_that_was_made_before_is_refused(make: Any, evaluator: str) -> None:
    """It follows an optimizer, and no query: the gradient through it would be missing without a word."""
    x = normal(6, 4)
    zo = make(TiedByView(), loss=F.mse_loss, evaluator=evaluator)
    with pytest.raises(InvalidInputError, match=r"reads the parameter encoder\.weight through a view"):
        zo.estimate(x, x)


def test_a_detached_view_is_a_constant_as_it_is_to_autograd() -> None:
    model, x = TiedByView(detached=True), normal(6, 4)
    exact = torch.autograd.grad(F.mse_loss(model(x), x), model.encoder.weight)[0]
    found = dz.CGE(model, loss=F.mse_loss, step_size=1e-6).estimate(x, x).gradients["encoder.weight"]
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)
