"""What cannot be followed is refused with the path to it; what is followed wrongly is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import GraphError, VerificationError
from deepzero.graph.capture import capture
from deepzero.graph.differences import Dense
from deepzero.graph.rules import RULES, rule

X, Y = normal(5, 4), torch.tensor([0, 1, 2, 1, 0])
aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self, function: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def propagate(model: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy, **options: Any) -> dz.Estimate:
    return dz.CGE(model, loss=loss, step_size=1e-2, evaluator=dz.PropagationEvaluator(**options)).estimate(X, Y)


UNEXPORTABLE: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "branch": lambda layer, x: layer(x) if layer(x).sum() > 0 else -layer(x),
    "loop": lambda layer, x: layer(x) * sum(1 for _ in range(int(layer(x).abs().sum() * 0 + 3))),
    "numpy": lambda layer, x: layer(x) + torch.from_numpy(layer(x).detach().numpy()),
}


@pytest.mark.parametrize("name", UNEXPORTABLE)
def test_models_that_cannot_be_exported(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The message names the cause and the way out, which works; nothing else is printed."""
    model = initialize(Net(UNEXPORTABLE[name]))
    with (
        nothing_changes(model),
        pytest.raises(GraphError, match=r"cannot be exported: .*evaluator=dz.SequentialEvaluator\(\)"),
    ):
        propagate(model)
    assert capfd.readouterr().err == ""
    dz.CGE(model, loss=F.cross_entropy, evaluator=dz.SequentialEvaluator()).estimate(X, Y)


def test_data_dependent_control_flow_is_named() -> None:
    with pytest.raises(GraphError, match=r"control flow depends on the values of tensors .*torch.where"):
        propagate(initialize(Net(UNEXPORTABLE["branch"])))


def test_control_flow_on_the_batch_is_control_flow_too() -> None:
    with pytest.raises(GraphError, match="control flow depends on the values of tensors"):
        propagate(initialize(Net(lambda layer, x: layer(x) if x.sum() > 0 else -layer(x))))


def test_a_model_that_raises_is_quoted() -> None:
    def broken(layer: nn.Linear, x: Tensor) -> Tensor:
        raise KeyError("the user's own mistake")

    with pytest.raises(GraphError, match=r"KeyError: .*the user's own mistake"):
        propagate(initialize(Net(broken)))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(GraphError, match="cannot be exported"):
        dz.CGE(nn.Linear(7, 3), loss=F.cross_entropy).estimate(X.float(), Y)


FOLLOWED_BY_NOTHING: dict[str, tuple[Callable[[nn.Linear, Tensor], Tensor], str]] = {
    "item": (lambda layer, x: layer(x) * layer(x).sum().item(), r"layer\.weight -> linear\w* -> sum\w* -> item\w*"),
    "draw": (lambda layer, x: layer(x) + torch.bernoulli(torch.sigmoid(layer(x))), r"layer\.weight -> linear\w* -> sigmoid -> bernoulli"),
    "normal": (lambda layer, x: torch.normal(layer(x), 1.0), r"layer\.weight -> linear -> normal"),
    "multinomial": (lambda layer, x: layer(x) + torch.multinomial(layer(x).softmax(1), 1), r"softmax\w* -> multinomial"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED_BY_NOTHING)
def test_the_error_lists_the_path(name: str) -> None:
    function, path = FOLLOWED_BY_NOTHING[name]
    model = initialize(Net(function))
    with (
        nothing_changes(model),
        pytest.raises(
            GraphError, match=rf"perturbation of layer.weight cannot be followed(.|\n)*path: .*{path}(.|\n)*at: File"
        ),
    ):
        propagate(model)


def test_a_parameter_that_enters_as_a_constant() -> None:
    """``.data`` cuts a parameter out of the exported graph: its differences would silently be zero."""
    model = Net(lambda layer, x: x @ data.t())
    data = model.layer.weight.data
    with pytest.raises(GraphError, match=r"parameter layer.weight enters the graph as the constant"):
        propagate(model.double() if data.dtype == torch.float64 else model, loss=lambda o, t: o.sum())


def custom(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An operation without a rule, a derivative or a batching rule."""
    operation = torch.library.custom_op(f"deepzero_tests::{name}", mutates_args=(), schema="(Tensor x) -> Tensor")(
        function
    )
    operation.register_fake(torch.empty_like)
    return operation


def test_an_opaque_operation_takes_the_fallback() -> None:
    steps = custom("steps", lambda x: torch.from_numpy((8 * x.numpy()).round() / 8))
    model = initialize(Net(lambda layer, x: steps(layer(x)) + layer(x)))
    expected = dz.CGE(model, loss=F.cross_entropy, step_size=0.3, evaluator=dz.SequentialEvaluator()).estimate(X, Y)
    found = dz.CGE(model, loss=F.cross_entropy, step_size=0.3).estimate(X, Y)
    assert_close(found.gradients, expected.gradients)


def test_an_opaque_operation_of_float32_only() -> None:
    def single(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise ValueError("float32, please")
        return x.tanh()

    operation = custom("single", single)
    model = initialize(Net(lambda layer, x: operation(layer(x))), dtype=torch.float32)
    expected = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.SequentialEvaluator()).estimate(X.float(), Y)
    found = dz.CGE(model, loss=F.cross_entropy, evaluator=dz.PropagationEvaluator(verify=False)).estimate(X.float(), Y)
    assert_close(found.gradients, expected.gradients, 1e-2)


def test_an_operation_that_fails_on_perturbed_values() -> None:
    seen: list[Tensor] = []

    def moody(x: Tensor) -> Tensor:
        seen.append(x.clone())
        if not torch.equal(x, seen[0]):
            raise ValueError("not this one")
        return x.clone()

    operation = custom("moody", moody)
    model = initialize(Net(lambda layer, x: operation(layer(x))))
    with pytest.raises(GraphError, match=r"moody.* has no difference rule.*not this one; add a rule"):
        propagate(model, verify=False)


class TestVerification:
    @pytest.fixture
    def model(self) -> nn.Module:
        return initialize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))

    def test_a_wrong_rule_is_an_error(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        right = RULES[aten.tanh.default]
        monkeypatch.setitem(RULES, aten.tanh.default, lambda call, x: Dense(1.01 * right(call, x).dense()))
        with (
            nothing_changes(model),
            pytest.raises(
                VerificationError, match=r"(?s)0\.\w+\[\d+\]: propagated .*, full forward .*SequentialEvaluator"
            ),
        ):
            propagate(model)

    def test_a_rule_that_drops_its_second_order_terms_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, model: nn.Module
    ) -> None:
        """A linearization is no difference, and a step of 0.01 is enough to tell."""

        def linearized(call: Any, x: Any) -> Dense:
            return Dense(x.difference.dense() * (1 - call.output.base.square()))

        monkeypatch.setitem(RULES, aten.tanh.default, linearized)
        with pytest.raises(VerificationError):
            propagate(model)

    def test_it_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        right = RULES[aten.tanh.default]
        monkeypatch.setitem(RULES, aten.tanh.default, lambda call, x: Dense(2 * right(call, x).dense()))
        propagate(model, verify=False)

    def test_it_happens_once(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy)
        zo.backward(X, Y)
        monkeypatch.setattr(dz.NetworkObjective, "call", lambda *_: pytest.fail("the oracle was asked again"))
        zo.backward(X, Y)

    def test_float32_models_are_verified_in_float64(self, model: nn.Module) -> None:
        """With a step far below what a difference of two float32 losses can see."""
        model.float()
        dz.CGE(model, loss=F.cross_entropy, step_size=1e-7).estimate(X.float(), Y)

    def test_models_that_only_run_in_float32_are_verified_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = initialize(
            Net(lambda layer, x: F.linear(x.float(), layer.weight, layer.bias).relu()), dtype=torch.float32
        )
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2)
        zo.estimate(X.float(), Y)
        monkeypatch.setitem(RULES, aten.relu.default, lambda call, x: Dense(3 * x.difference.dense()))
        with pytest.raises(VerificationError):
            dz.CGE(model, loss=F.cross_entropy, step_size=1e-2).estimate(X.float(), Y)

    def test_a_network_that_is_not_a_function_of_its_parameters(self) -> None:
        counter = iter(range(1000))
        model = initialize(Net(lambda layer, x: layer(x) * (1 + next(counter))))
        with pytest.raises(VerificationError, match="deterministic"):
            propagate(model)


def test_a_user_can_add_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING says: a function under ``@rule``, and the fallback is out of the way."""
    model = initialize(nn.Sequential(nn.Linear(4, 3), nn.Softplus()))
    objective = dz.NetworkObjective(model, F.cross_entropy)
    before = dict(RULES)
    try:
        del RULES[aten.softplus.default]
        assert dz.PropagationEvaluator().program(objective, (X, Y)).fallbacks == ("aten.softplus.default",)

        @rule(aten.softplus.default)
        def softplus(call: Any, x: Any, *_: Any) -> Dense:
            d = x.difference.dense()
            return Dense(torch.log1p(torch.sigmoid(x.base) * torch.expm1(d)))

        evaluator = dz.PropagationEvaluator()
        assert evaluator.program(objective, (X, Y)).fallbacks == ()
        dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator).estimate(X, Y)
    finally:
        RULES.clear()
        RULES.update(before)


class TestCapture:
    def test_parameters_and_buffers_are_inputs(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        graph = capture(dz.NetworkObjective(model, F.cross_entropy), X.float(), Y)
        assert set(graph.parameter_inputs().values()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert {name for kind, name in graph.inputs.values() if kind == "buffer"} == buffers
        assert graph.buffer_updates.keys() == buffers
        assert [name for kind, name in graph.inputs.values() if kind == "batch"] == [0, 1]

    def test_tied_parameters_share_a_name(self) -> None:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        graph = capture(dz.NetworkObjective(nn.Sequential(first, second), F.mse_loss), X.float(), X.float())
        assert sorted(set(graph.parameter_inputs().values())) == ["0.bias", "0.weight", "1.bias"]

    def test_nodes_are_in_topological_order(self) -> None:
        graph = capture(dz.NetworkObjective(nn.Linear(4, 3), F.cross_entropy), X.float(), Y)
        seen = set(graph.inputs)
        for node in graph.nodes:
            assert seen.issuperset(node.inputs)
            seen.add(node)
        assert graph.output in seen

    def test_capturing_changes_nothing(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
        with nothing_changes(model):
            capture(dz.NetworkObjective(model, F.cross_entropy), X, Y)

    def test_a_model_that_changes_its_input(self) -> None:
        model = Net(lambda layer, x: layer(x.add_(1)))
        with pytest.raises(GraphError, match="in place; only buffers may change"):
            capture(dz.NetworkObjective(model, F.cross_entropy), X.float(), Y)

    def test_nodes_know_where_they_come_from(self) -> None:
        graph = capture(dz.NetworkObjective(Net(lambda layer, x: layer(x).tanh()), F.cross_entropy), X.float(), Y)
        node = next(n for n in graph.nodes if n.target is aten.tanh.default)
        assert "test_graph_guards.py" in node.source
