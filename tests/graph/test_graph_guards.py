"""What cannot be followed is refused with the path to it; what is followed wrongly is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, initialize, normal, nothing_changes
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

import deepzero as dz
from deepzero.errors import GraphError, VerificationError
from deepzero.evaluators import propagation
from deepzero.graph.capture import capture
from deepzero.graph.differences import Dense
from deepzero.graph.forward import graph_inputs, run
from deepzero.graph.program import compile_program
from deepzero.graph.rules import RULES, rule
from deepzero.objective import parameters_of
from deepzero.randomness import Draws

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
    """The message names the cause, and nothing else is printed; the default evaluator finds another way, and says so once."""
    model = initialize(Net(UNEXPORTABLE[name]))
    with nothing_changes(model), pytest.raises(GraphError, match=r"cannot be exported: "):
        propagate(model)
    assert capfd.readouterr().err == ""
    expected = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2, evaluator=dz.SequentialEvaluator()).estimate(X, Y)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2)
    with pytest.warns(dz.SlowQueriesWarning, match=r"full forward.*because the program cannot be exported") as said:
        assert_close(zo.estimate(X, Y).gradients, expected.gradients)
    assert len(said) == 1
    assert_close(zo.estimate(X, Y).gradients, expected.gradients)  # a second warning would be an error
    with pytest.raises(GraphError, match="cannot be exported"):
        dz.CGE(model, loss=F.cross_entropy, strict=True).estimate(X, Y)


def test_data_dependent_control_flow_is_named() -> None:
    with pytest.raises(GraphError, match=r"control flow depends on the values of tensors"):
        propagate(initialize(Net(UNEXPORTABLE["branch"])))


def test_control_flow_on_the_batch_is_control_flow_too() -> None:
    with pytest.raises(GraphError, match="control flow depends on the values of tensors"):
        propagate(initialize(Net(lambda layer, x: layer(x) if x.sum() > 0 else -layer(x))))


def test_a_model_that_raises_is_quoted() -> None:
    def broken(layer: nn.Linear, x: Tensor) -> Tensor:
        raise KeyError("the user's own mistake")

    with pytest.raises(KeyError, match="the user's own mistake"):
        propagate(initialize(Net(broken)))


@pytest.mark.parametrize("estimator", [dz.CGE, dz.RGE])
@pytest.mark.parametrize(
    ("model", "batch", "error", "words"),
    [
        (nn.Linear(7, 3), (X.float(), Y), RuntimeError, "shapes cannot be multiplied .5x4 and 7x3."),
        (nn.Linear(4, 3), (X.float(), Y.float()), RuntimeError, "expected floating point type|size|shape|dtype"),
        (nn.Linear(4, 3), (X.float(), Y + 1), IndexError, "out of bounds"),
        (nn.Linear(4, 3), (Y, X.float()), RuntimeError, "shapes|dtype"),
        (nn.Linear(4, 3), (X.float().numpy(), Y), TypeError, "must be Tensor, not numpy.ndarray"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (X[:1].float(), Y[:1]), ValueError, "more than 1 value"),
    ],
    ids=["width", "float labels", "label out of range", "swapped", "numpy", "one sample"],
)
def test_mistakes_of_the_user_come_out_as_pytorch_says_them(
    estimator: Any, model: nn.Module, batch: tuple[Any, Any], error: type[Exception], words: str
) -> None:
    with nothing_changes(model), pytest.raises(error, match=words) as caught:
        estimator(model, loss=F.cross_entropy).estimate(*batch)
    assert "export" not in str(caught.value)


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


@pytest.mark.filterwarnings("ignore::deepzero.SlowQueriesWarning")
def test_a_parameter_that_the_program_reaches_by_itself() -> None:
    """References and ``.data`` of the program's own are the parameter too: differences along them must not be lost."""
    model = initialize(nn.Linear(4, 3))
    own = [model.weight]
    loss = lambda o, t: F.cross_entropy(o, t) + own[0].data.square().sum()  # noqa: E731
    exact = torch.autograd.grad(F.cross_entropy(model(X), Y) + model.weight.square().sum(), model.weight)[0]
    for evaluator in ("auto", "sequential"):
        found = dz.CGE(model, loss=loss, step_size=1e-6, evaluator=evaluator).estimate(X, Y).gradients
        assert_close({"weight": found["weight"]}, {"weight": exact}, 1e-5)


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


def test_a_rule_that_fails_later_than_the_checks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By default such queries run operations again, and the log says so; who asked for propagation gets the error."""
    model = initialize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    expected = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2, evaluator="sequential").estimate(X, Y)
    right = RULES[aten.tanh.default]
    broken: list[bool] = []

    def fragile(call: Any, x: Any) -> Any:
        if broken:
            raise IndexError("it stumbles")
        return right(call, x)

    monkeypatch.setitem(RULES, aten.tanh.default, fragile)
    zo, asked = (dz.CGE(model, loss=F.cross_entropy, step_size=1e-2, evaluator=e) for e in ("auto", "propagation"))
    for one in (zo, asked):
        one.estimate(X, Y)
    broken.append(True)
    with caplog.at_level("WARNING", logger="deepzero"):
        assert_close(zo.estimate(X, Y).gradients, expected.gradients)
    assert "queries of 0.weight run operations again: a rule raised it stumbles" in caplog.text
    with pytest.raises(IndexError, match="it stumbles"):
        asked.estimate(X, Y)


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
                VerificationError, match=r"(?s)0\.\w+\[\d+\]: propagated .*, plain run .*SequentialEvaluator"
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
        """A wrong rule then goes through, and its numbers come out."""
        right = RULES[aten.tanh.default]
        before = propagate(model).gradients["0.weight"]
        monkeypatch.setitem(RULES, aten.tanh.default, lambda call, x: Dense(2 * right(call, x).dense()))
        after = propagate(model, verify=False).gradients["0.weight"]
        assert float((after - before).norm()) > 0.3 * float(before.norm())

    def test_it_happens_once_for_a_program(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy)
        zo.backward(X, Y)
        monkeypatch.setattr(propagation, "verify", lambda *_, **__: pytest.fail("verified again"))
        zo.backward(X, Y)
        with pytest.raises(pytest.fail.Exception):
            zo.backward(X[:3], Y[:3])

    def test_every_program_is_verified(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An operation that only a later program uses: train mode after eval."""
        right = RULES[aten.tanh.default]
        monkeypatch.setitem(RULES, aten.tanh.default, lambda call, x: Dense(2 * right(call, x).dense()))
        model = initialize(Net(lambda layer, x: layer(x).tanh() if layer.training else layer(x).relu()))
        zo = dz.CGE(model.eval(), loss=F.cross_entropy)
        zo.estimate(X, Y)
        model.train()
        with pytest.raises(VerificationError):
            zo.estimate(X, Y)

    def test_float32_models_are_verified_in_float64(self, model: nn.Module) -> None:
        """With a step far below what a difference of two float32 losses can see, and sharp enough to see a wrong rule."""
        model.float()
        zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-7)
        zo.estimate(X.float(), Y)
        check = zo.evaluator.check(zo.objective, (X.float(), Y))
        assert check.worst < 1e-7
        assert check.floor < 1e-12
        assert check.coordinates >= 4
        assert check.silent == ()

    @pytest.mark.parametrize("size", [64, 569, 1000])
    def test_losses_that_move_in_jumps_raise_no_false_alarm(self, size: int) -> None:
        x, y = normal(size, 4, dtype=torch.float32), torch.arange(size) % 3
        model = initialize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), dtype=torch.float32)
        loss = lambda o, t: (o.argmax(1) != t).float().mean()  # noqa: E731
        dz.CGE(model, loss=loss, step_size=0.1, stencil="central", strict=True).estimate(x, y)

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
        for evaluator in ("auto", "propagation"):
            with pytest.raises(VerificationError, match="not a deterministic function"):
                dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator).estimate(X, Y)


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_kernel_that_rounds_to_float32_is_not_mistaken_for_a_wrong_rule(dtype: torch.dtype, dim: int) -> None:
    """Weight norm on CUDA takes its root with ``sqrtf``, in float64 too; here the CPU does."""

    def rounded(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        norm = v.double().square().sum(1 - dim, keepdim=True).float().sqrt().double()
        return (v.double() * g.double() / norm).to(v.dtype), norm.to(g.dtype)

    model = initialize(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3), dim=dim)), dtype=dtype)
    zo = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2, strict=True)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_weight_norm_interface", rounded, "CPU")
        found = zo.estimate(X.to(dtype), Y)
    expected = dz.CGE(model, loss=F.cross_entropy, step_size=1e-2, evaluator=dz.SequentialEvaluator())
    assert_close(found.gradients, expected.estimate(X.to(dtype), Y).gradients, 1e-6 if dtype.itemsize == 8 else 1e-3)


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.0), (1.0, 1e-4), (1000.0, 1.0)])
def test_noise_that_a_normalization_enlarges_is_not_mistaken_for_a_wrong_rule(mean: float, spread: float) -> None:
    """Behind a mean that is large beside the spread, plain runs in float64 show nothing but the last digits of the mean."""
    model = initialize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), dtype=torch.float32)
    x, y = (mean + spread * normal(16, 4)).float(), torch.arange(16) % 3
    found = dz.CGE(model, loss=F.cross_entropy, step_size=1e-3).estimate(x, y).gradients
    assert_close({"bias": found["0.bias"]}, {"bias": torch.zeros(5)}, 1e-9)


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
        graph = capture(dz.NetworkObjective(model, F.cross_entropy), (X.float(), Y))
        assert set(graph.parameter_inputs().values()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert {name for kind, name in graph.inputs.values() if kind == "buffer"} == buffers
        assert [name for kind, name in graph.inputs.values() if kind == "batch"] == [0, 1]

    def test_tied_parameters_share_a_name(self) -> None:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        graph = capture(dz.NetworkObjective(nn.Sequential(first, second), F.mse_loss), (X.float(), X.float()))
        assert sorted(set(graph.parameter_inputs().values())) == ["0.bias", "0.weight", "1.bias"]

    def test_nodes_are_in_topological_order(self) -> None:
        graph = capture(dz.NetworkObjective(nn.Linear(4, 3), F.cross_entropy), (X.float(), Y))
        seen = set(graph.inputs)
        for node in graph.nodes:
            assert seen.issuperset(node.inputs)
            seen.add(node)
        assert graph.output in seen

    def test_capturing_changes_nothing(self) -> None:
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
        with nothing_changes(model):
            capture(dz.NetworkObjective(model, F.cross_entropy), (X, Y))

    def test_a_model_that_changes_its_input(self) -> None:
        """Every query sees the input as it was given, and so does the user."""
        model = initialize(Net(lambda layer, x: layer(x.add_(1))))
        expected = dz.CGE(initialize(Net(lambda layer, x: layer(x + 1))), loss=F.cross_entropy).estimate(X, Y)
        for evaluator in ("auto", "sequential", "batched"):
            x = X.clone()
            found = dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator).estimate(x, Y)
            assert torch.equal(x, X)
            assert_close(found.gradients, expected.gradients, 1e-4)

    def test_nodes_know_where_they_come_from(self) -> None:
        graph = capture(dz.NetworkObjective(Net(lambda layer, x: layer(x).tanh()), F.cross_entropy), (X.float(), Y))
        node = next(n for n in graph.nodes if n.target is aten.tanh.default)
        assert "test_graph_guards.py" in node.source

    def test_a_parameter_that_the_graph_does_not_hold(self) -> None:
        """A parameter that was added behind the program's back has no difference to follow."""
        objective = dz.NetworkObjective(nn.Linear(4, 3), F.cross_entropy)
        graph = capture(objective, (X.float(), Y))
        with pytest.raises(GraphError, match="parameters added do not appear in the exported graph"):
            compile_program(graph, {**parameters_of(objective), "added": torch.zeros(2)})

    def test_draws_that_are_not_those_of_the_program(self) -> None:
        """A graph that draws where the live program did not (or in another shape) has other random numbers."""
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        objective = dz.NetworkObjective(model, F.cross_entropy)
        _, draws = objective.base(parameters_of(objective), (X.float(), Y), seed=0)
        graph = capture(objective, (X.float(), Y), draws)
        program = compile_program(graph, parameters_of(objective))
        inputs = graph_inputs(graph, objective, (X.float(), Y))
        assert graph.output in run(graph, inputs, keep=program.kept, draws=draws)
        with pytest.raises(GraphError, match=r"dropout.* is draw 0 of the graph, where the program drew otherwise"):
            run(graph, inputs, keep=program.kept, draws=Draws(0))

    def test_an_input_that_is_no_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The exporter may lift objects of other kinds; their values could not be followed."""
        decompose = torch.export.ExportedProgram.run_decompositions

        def with_an_object(*args: Any, **options: Any) -> Any:
            program = decompose(*args, **options)
            first = program.graph_signature.input_specs[0]
            first.kind, first.target = InputKind.CUSTOM_OBJ, "tokenizer"
            return program

        monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", with_an_object)
        with pytest.raises(GraphError, match="an input of a kind without a rule: CUSTOM_OBJ tokenizer"):
            capture(dz.NetworkObjective(nn.Linear(4, 3), F.cross_entropy), (X.float(), Y))
