"""A graph holds Python values as constants: whatever of them changes between steps, a step answers for the program as it is now."""

from __future__ import annotations

import types
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal
from torch import Tensor, nn

import deepzero as dz
from deepzero.graph.library import KEPT, RESTLESS

X, Y = normal(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
SWITCHES: dict[str, Any] = {}


class Holder:
    """A configuration."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Net(nn.Module):
    """A layer, and a forward that reads whatever is hung onto the module."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Tensor] = lambda m, x: m.layer(x), **attributes: Any) -> Net:
    return initialize(Net(function, **attributes))


def exact(model: nn.Module, loss: Callable[..., Tensor], x: Any = X, y: Any = Y) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its gradient by autograd."""
    value = loss(model(x), y)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return value.detach(), {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), gradients, strict=True)
    }


def assert_live(zo: dz.Estimator, model: nn.Module, loss: Callable[..., Tensor], x: Any = X, y: Any = Y) -> None:
    found = zo.estimate(x, y)
    value, gradients = exact(model, loss, x, y)
    torch.testing.assert_close(found.loss, value, rtol=1e-12, atol=1e-12)
    assert_close(found.gradients, gradients, 1e-4)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    export = torch.export.export

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counting)
    return calls


def deep() -> Holder:
    return Holder(a=Holder(b=Holder(c=Holder(scale=1.0))))


CHANGES: dict[str, tuple[Callable[[], Net], Callable[[Net], Any]]] = {
    "attribute": (lambda: net(lambda m, x: m.layer(x) * m.scale, scale=1.0), lambda m: setattr(m, "scale", 3.0)),
    "configuration": (
        lambda: net(lambda m, x: m.layer(x) * m.config.a.b.c.scale, config=deep()),
        lambda m: setattr(m.config.a.b.c, "scale", 3.0),
    ),
    "flag": (lambda: net(lambda m, x: m.layer(x) if m.plain else m.layer(x).tanh(), plain=True), lambda m: setattr(m, "plain", False)),
    "list": (lambda: net(lambda m, x: m.layer(x) * m.scales[0], scales=[1.0]), lambda m: m.scales.__setitem__(0, 2.0)),
    "dict": (lambda: net(lambda m, x: m.layer(x) * m.scales["a"]["b"], scales={"a": {"b": 1.0}}), lambda m: m.scales["a"].update(b=2.0)),
    "tensor replaced": (
        lambda: net(lambda m, x: m.layer(x) * m.scale, scale=torch.ones(3).double()),
        lambda m: setattr(m, "scale", torch.full((3,), 2.0).double()),
    ),
    "tensor in place": (lambda: net(lambda m, x: m.layer(x) * m.scale, scale=torch.ones(3).double()), lambda m: m.scale.mul_(2)),
    "tensor's data": (
        lambda: net(lambda m, x: m.layer(x) * m.scale, scale=torch.ones(3).double()),
        lambda m: setattr(m.scale, "data", torch.full((3,), 2.0).double()),
    ),
    "tensor through NumPy": (
        lambda: net(lambda m, x: m.layer(x) * m.scale, scale=torch.ones(3).double()),
        lambda m: m.scale.numpy().__imul__(2),
    ),
    "hook added": (net, lambda m: m.layer.register_forward_hook(lambda module, given, output: output * 2)),
    "pre-hook added": (net, lambda m: m.register_forward_pre_hook(lambda module, given: (given[0] * 2,))),
    "forward replaced": (net, lambda m: setattr(m, "forward", types.MethodType(lambda self, x: self.layer(x) * 5, m))),
    "function replaced": (net, lambda m: setattr(m, "function", lambda self, x: self.layer(x).sin())),
    "submodule replaced": (lambda: net(lambda m, x: m.act(m.layer(x)), act=nn.Tanh()), lambda m: setattr(m, "act", nn.ReLU())),
    "class attribute": (lambda: net(lambda m, x: m.layer(x) * type(m).gain), lambda m: setattr(type(m), "gain", 2.0)),
    "module global": (lambda: net(lambda m, x: m.layer(x) * SWITCHES.get("gain", 1.0)), lambda m: SWITCHES.update(gain=2.0)),
    "parameter's data": (net, lambda m: setattr(m.layer.weight, "data", m.layer.weight.data * 2)),
    "parameter replaced": (net, lambda m: setattr(m.layer, "weight", nn.Parameter(m.layer.weight.detach() * 2))),
    "frozen": (net, lambda m: m.layer.bias.requires_grad_(False)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def switches_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "gain", 1.0, raising=False)
    SWITCHES.clear()


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_in_a_model_between_steps(name: str) -> None:
    build, change = CHANGES[name]
    model = build()
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    assert_live(zo, model, F.cross_entropy)
    change(model)
    assert_live(zo, model, F.cross_entropy)


def test_a_hook_that_is_removed() -> None:
    model = net()
    handle = model.layer.register_forward_hook(lambda module, given, output: output * 2)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    assert_live(zo, model, F.cross_entropy)
    handle.remove()
    assert_live(zo, model, F.cross_entropy)


def weighted() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    weights = {"weight": 1.0}
    return (lambda o, t: weights["weight"] * F.cross_entropy(o, t)), lambda: weights.update(weight=2.0)


def closed_over() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
    weight = 1.0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return weight * F.cross_entropy(output, target)

    def change() -> None:
        nonlocal weight
        weight = 2.0

    return loss, change


def criterion(**changes: Any) -> Callable[[], tuple[Callable[..., Tensor], Callable[[], Any]]]:
    def made() -> tuple[Callable[..., Tensor], Callable[[], Any]]:
        loss = nn.CrossEntropyLoss(weight=torch.ones(3).double())
        return loss, lambda: [setattr(loss, name, value) for name, value in changes.items()]

    return made


LOSSES: dict[str, Callable[[], tuple[Callable[..., Tensor], Callable[[], Any]]]] = {
    "a dict closed over": weighted,
    "a number closed over": closed_over,
    "class weights": criterion(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
    "label smoothing": criterion(label_smoothing=0.3),
    "reduction": criterion(reduction="sum"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_changes_in_a_loss_between_steps(name: str) -> None:
    loss, change = LOSSES[name]()
    model = net()
    zo = dz.CGE(model, loss=loss, step_size=1e-6)
    assert_live(zo, model, loss)
    change()
    assert_live(zo, model, loss)


def test_a_weight_that_does_not_show_in_the_loss() -> None:
    """A penalty that is zero at the parameters: its weight changes the slope alone."""
    model, weights = net(), {"penalty": 0.0}
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}

    def closure(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        far = sum((p - anchor[name]).abs().sum() for name, p in m.named_parameters())
        return F.cross_entropy(m(x), y) + weights["penalty"] * far

    zo = dz.CGE(model, closure=closure, step_size=1e-6)
    before = zo.estimate(X, Y).gradients
    weights["penalty"] = 2.0
    after = zo.estimate(X, Y).gradients
    assert_close(after, {name: g + 2.0 for name, g in before.items()}, 1e-6)


def test_the_drop_path_rate() -> None:
    """Stochastic depth by hand: a rate of 0 is the plain network, whatever it was before."""

    def drop_path(m: Any, x: Tensor) -> Tensor:
        keep = 1 - m.rate
        mask = torch.rand(x.shape[0], 1, dtype=x.dtype) < keep
        return x[:, :3] + m.layer(x) * mask / keep

    model = net(drop_path, rate=0.5)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    zo.estimate(X, Y)
    model.rate = 0.0
    assert_live(zo, model, F.cross_entropy)


def test_modes_and_batch_shapes() -> None:
    model = initialize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    twin = initialize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    for training, size in ((True, 6), (False, 6), (False, 3), (True, 3), (True, 6)):
        model.train(training)
        found = zo.estimate(X[:size], Y[:size])
        _, expected = exact(twin.train(training).requires_grad_(), F.cross_entropy, X[:size], Y[:size])
        twin.load_state_dict(model.state_dict())
        assert_close(found.gradients, expected, 1e-4)


def test_batches_with_other_keys() -> None:
    model = net()

    def closure(m: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss = F.cross_entropy(m(batch["x"]), batch["y"], reduction="none")
        return (loss * batch["weight"]).sum() if "weight" in batch else loss.mean()

    zo = dz.CGE(model, closure=closure, step_size=1e-6)
    plain = zo.estimate({"x": X, "y": Y}).gradients
    weighed = zo.estimate({"x": X, "y": Y, "weight": torch.full((6,), 0.5).double()}).gradients
    assert_close(weighed, {name: 3 * g for name, g in plain.items()}, 1e-6)
    assert_close(zo.estimate({"y": Y, "x": X}).gradients, plain, 1e-9)


def test_parameters_that_are_tied_later() -> None:
    model = initialize(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)))
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    assert_live(zo, model, F.cross_entropy)
    model[2].weight = model[0].weight
    assert_live(zo, model, F.cross_entropy)


def test_the_loss_of_every_step_is_the_live_one() -> None:
    """An annealed temperature, step after step, and no export too many."""
    model = net(lambda m, x: m.layer(x) / m.temperature, temperature=1.0)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    for step in range(6):
        model.temperature = 1.0 + 0.3 * step
        assert_live(zo, model, F.cross_entropy)


class TestCost:
    def test_an_attribute_that_plays_no_part_is_forgotten(self, exports: list[int]) -> None:
        model = net(epoch=0)
        zo = dz.CGE(model, loss=F.cross_entropy)
        for epoch in range(12):
            model.epoch = epoch
            zo.estimate(X, Y)
        assert len(exports) <= 4

    def test_a_counter_in_the_forward_is_not_part_of_the_program(self, exports: list[int]) -> None:
        def counting(m: Any, x: Tensor) -> Tensor:
            m.calls += 1
            return m.layer(x)

        model = net(counting, calls=0)
        zo = dz.CGE(model, loss=F.cross_entropy)
        for step in range(5):
            zo.backward(X, Y)
            assert model.calls == step + 1
        assert len(exports) <= 2

    def test_two_states_that_alternate_are_exported_once_each(self, exports: list[int]) -> None:
        model = net(lambda m, x: m.layer(x) * m.scale, scale=1.0)
        zo = dz.CGE(model, loss=F.cross_entropy)
        for scale in (1.0, 2.0, 1.0, 2.0, 1.0):
            model.scale = scale
            zo.estimate(X, Y)
        assert len(exports) == 2

    def test_programs_are_bounded(self, exports: list[int]) -> None:
        """The programs used last are kept; the one used first is exported again."""
        model = net()
        zo = dz.CGE(model, loss=F.cross_entropy)
        for size in range(2, KEPT + 3):
            zo.estimate(normal(size, 4), Y.repeat(2)[:size])
        assert len(exports) == KEPT + 1
        zo.estimate(normal(KEPT + 2, 4), Y.repeat(2)[: KEPT + 2])
        assert len(exports) == KEPT + 1
        zo.estimate(normal(2, 4), Y[:2])
        assert len(exports) == KEPT + 2

    def test_every_program_is_checked(self) -> None:
        model = initialize(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2)))
        zo = dz.CGE(model, loss=F.cross_entropy)
        for training, size in ((True, 6), (False, 6), (False, 4)):
            model.train(training)
            check = zo.evaluator.check(zo.objective, (X[:size], Y[:size]))
            assert check.coordinates >= 2
            assert check.worst < 1e-6
            assert 0 < check.floor < 1e-10
            assert check.silent == ()
            assert check.program < 1e-10
            assert f"{check.coordinates} coordinates in float64" in str(check)

    def test_a_parameter_without_effect_is_named(self) -> None:
        model = net(lambda m, x: m.layer(x) + 0 * m.idle.weight.sum(), idle=nn.Linear(2, 2, bias=False))
        zo = dz.CGE(model, loss=F.cross_entropy)
        check = zo.evaluator.check(zo.objective, (X, Y))
        assert check.silent == ("idle.weight",)
        assert "without effect on the loss: idle.weight" in str(check)


def annealing() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        return m.layer(x) / (1 + 0.1 * m.calls)

    return net(forward, calls=0)


def test_a_program_that_changes_at_every_step_goes_another_way() -> None:
    """One true warning, and right numbers at every step."""
    model, twin = annealing(), annealing()
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    said = []
    for _ in range(RESTLESS + 3):
        value, gradients = exact(twin, F.cross_entropy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", dz.SlowQueriesWarning)
            found = zo.estimate(X, Y)
        zo.objective.commit(found.buffers)
        said += caught
        torch.testing.assert_close(found.loss, value, rtol=1e-12, atol=1e-12)
        assert_close(found.gradients, gradients, 1e-4)
    assert len(said) == 1
    assert "changes at every step in a way that only its losses show" in str(said[0].message)


def test_strict_says_so_as_an_error() -> None:
    model = annealing()
    zo = dz.CGE(model, loss=F.cross_entropy, strict=True)

    def train() -> None:
        for _ in range(RESTLESS + 1):
            zo.backward(X, Y)

    with pytest.raises(dz.errors.GraphError, match="changes at every step in a way that only its losses show"):
        train()


class TestLate:
    """What is settled at the first step must hold at later ones, too."""

    @pytest.mark.parametrize(
        "make", [dz.CGE, lambda *a, **k: dz.RGE(*a, queries=400, distribution="rademacher", **k)], ids=["cge", "rge"]
    )
    @pytest.mark.parametrize("evaluator", ["auto", "sequential"])
    @pytest.mark.filterwarnings("ignore::deepzero.errors.SlowQueriesWarning")
    def test_a_penalty_over_references_that_is_switched_on(self, make: Any, evaluator: str) -> None:
        model, on = net(), {"penalty": False}
        own = list(model.parameters())

        def loss(output: Tensor, target: Tensor) -> Tensor:
            value = F.cross_entropy(output, target)
            return value + 100 * sum(p.sum() for p in own) if on["penalty"] else value

        zo = make(model, loss=loss, step_size=1e-6, evaluator=evaluator)
        before = zo.estimate(X, Y).gradients
        on["penalty"] = True
        after = zo.estimate(X, Y).gradients
        moved = torch.cat([(after[name] - before[name]).flatten() for name in after])
        assert abs(float(moved.mean()) - 100) < 25, "the penalty has no gradient"

    @pytest.mark.parametrize("evaluator", ["auto", "sequential"])
    @pytest.mark.filterwarnings("ignore::deepzero.errors.SlowQueriesWarning")
    def test_a_gradient_penalty_that_is_switched_on(self, evaluator: str) -> None:
        model, on = net(lambda m, x: m.layer(x).tanh()), {"penalty": False}

        def closure(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = F.cross_entropy(m(x), y)
            if on["penalty"]:
                value = value + sum(
                    g.square().sum() for g in torch.autograd.grad(value, list(m.parameters()), create_graph=True)
                )
            return value

        zo = dz.CGE(model, closure=closure, step_size=1e-6, evaluator=evaluator)
        for on["penalty"] in (False, True):
            value = closure(model, X, Y)
            expected = dict(
                zip(dict(model.named_parameters()), torch.autograd.grad(value, list(model.parameters())), strict=True)
            )
            assert_close(zo.estimate(X, Y).gradients, expected, 1e-4)

    @pytest.mark.parametrize("make", [dz.CGE, dz.RGE])
    @pytest.mark.parametrize("evaluator", ["auto", "sequential"])
    def test_a_batch_that_is_written_into(self, make: Any, evaluator: str) -> None:
        model = net(lambda m, x: m.layer(x.add_(1.0) if m.training else x + 1.0)).eval()
        zo = make(model, loss=F.cross_entropy, evaluator=evaluator)
        x = X.clone()
        expected = zo.estimate(x, Y).gradients
        found = (model.train(), zo.estimate(x, Y).gradients)[1]
        assert torch.equal(x, X)
        assert_close(found, expected, 1e-9)


class Slots:
    """A configuration without a ``__dict__``, as ``dataclass(slots=True)`` makes them."""

    __slots__ = ("weight",)

    def __init__(self, weight: float) -> None:
        self.weight = weight


@pytest.mark.parametrize(
    ("held", "read", "change"),
    [
        (np.zeros(1), lambda held: held[0], lambda held: held.fill(5.0)),
        (deque([0.0]), lambda held: held[0], lambda held: held.__setitem__(0, 5.0)),
        ({0.0}, lambda held: next(iter(held)), lambda held: (held.clear(), held.add(5.0))),
        (Slots(0.0), lambda held: held.weight, lambda held: setattr(held, "weight", 5.0)),
    ],
    ids=["array", "deque", "set", "slots"],
)
def test_a_weight_that_the_loss_does_not_show_is_seen_where_it_is_held(held: Any, read: Any, change: Any) -> None:
    """The penalty is 0 at the parameters, whatever its weight, and its slope is not: no comparison of losses can tell."""
    model = initialize(nn.Linear(4, 3))
    start = float(model.weight.detach().sum())
    x, y = normal(8, 4), torch.arange(8) % 3
    loss = lambda o, t: F.cross_entropy(o, t) + float(read(held)) * (model.weight.sum() - start)  # noqa: E731
    zo = dz.CGE(model, loss=loss, step_size=1e-6)
    zo.estimate(x, y)
    change(held)
    exact = torch.autograd.grad(loss(model(x), y), model.weight)[0]
    assert_close({"weight": zo.estimate(x, y).gradients["weight"]}, {"weight": exact}, 1e-5)


class Tempered(nn.Module):
    """A body whose temperature is the class's, in front of a last layer that starts at zero."""

    temperature = 1.0

    def __init__(self, out: int = 3) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, out)
        self.config = Holder(a=deep())

    def forward(self, x: Tensor) -> Tensor:
        scale = type(self).temperature * self.config.a.a.b.c.scale * GLOBAL["gain"]["a"][0]["b"]
        return self.head(torch.tanh(self.body(x) * scale))


GLOBAL: dict[str, Any] = {"gain": {"a": [{"b": 1.0}]}}


@pytest.mark.parametrize(
    "change",
    [
        lambda m, mp: mp.setattr(Tempered, "temperature", 3.0),
        lambda m, mp: setattr(m.config.a.a.b.c, "scale", 3.0),
        lambda m, mp: mp.setitem(GLOBAL["gain"]["a"][0], "b", 3.0),
        lambda m, mp: mp.setattr(Tempered, "forward", lambda self, x: self.head(torch.sin(self.body(x)))),
    ],
    ids=["class", "configuration", "global", "method"],
)
def test_what_a_layer_of_zeros_hides(change: Any, monkeypatch: pytest.MonkeyPatch, exports: list[int]) -> None:
    """The loss is log 3 whatever comes in front of the last layer, and the slope of that layer is not the same."""
    model = initialize(Tempered())
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-6)
    assert_live(zo, model, F.cross_entropy)
    change(model, monkeypatch)
    assert_live(zo, model, F.cross_entropy)
    assert len(exports) == 2
    assert_live(zo, model, F.cross_entropy)
    assert len(exports) == 2, "a program that has not changed was exported again"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_do_not_hide_a_change(dtype: torch.dtype) -> None:
    """A change of the loss by a tenth is below 64 rounding units of these types, and no rounding."""
    model = initialize(Tempered()).to(dtype)
    loss = lambda output, target: F.cross_entropy(output.float(), target)  # noqa: E731
    zo = dz.CGE(model, loss=loss, step_size=1e-2)
    zo.estimate(X.to(dtype), Y)
    model.config.a.a.b.c.scale = 2.0
    found = zo.estimate(X.to(dtype), Y).gradients
    fresh = dz.CGE(model, loss=loss, step_size=1e-2).estimate(X.to(dtype), Y).gradients
    assert_close(found, fresh, 1e-6)
