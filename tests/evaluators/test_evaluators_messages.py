"""Every refusal of the evaluators is provoked once, and says what is true."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import (
    DrawError,
    GraphError,
    InvalidInputError,
    NonFiniteLossError,
    UnbatchableError,
    VerificationError,
)
from deepzero.randomness import Draws

X, Y = normal(6, 4), torch.tensor([0, 1, 2, 1, 0, 2])
Closure = Callable[..., Any]


def linear() -> nn.Linear:
    return initialize(nn.Linear(4, 3))


def another_when_exported(m: nn.Module, x: Tensor) -> Tensor:
    return m(x).square().mean() * (2 if torch.compiler.is_exporting() else 1)


GRAPHS: dict[str, tuple[Callable[[], nn.Module], Closure, str]] = {
    "constant": (linear, lambda m, x: 1.0, "the program returns no tensor, or one that depends on neither"),
    "in place": (
        lambda: initialize(nn.Embedding(5, 4, max_norm=0.1)),
        lambda m, x: m(torch.arange(3)).sum(),
        r"the program changes the parameter model.weight in place",
    ),
    "another function": (
        linear,
        another_when_exported,
        r"the exported graph is not the program: at the parameters it has the loss",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.filterwarnings("ignore::deepzero.errors.WrittenParameterWarning")
def test_what_no_graph_can_stand_for(name: str) -> None:
    """An error from the evaluator that needs the graph; the default one goes another way, and quotes it."""
    build, closure, message = GRAPHS[name]
    model = build()
    with nothing_changes(model), pytest.raises(GraphError, match=message):
        dz.CGE(model, closure=closure, evaluator="propagation").estimate(X)
    with pytest.warns(dz.SlowQueriesWarning, match=message):
        found = dz.CGE(model, closure=closure).estimate(X).gradients
    expected = dz.CGE(model, closure=closure, evaluator="sequential").estimate(X).gradients
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9)


def test_another_function_with_the_same_loss_is_noticed_near_the_parameters() -> None:
    model = linear()
    start = model.weight.detach().clone()

    def closure(m: Any, x: Tensor) -> Tensor:
        far = (m.weight - start).square().sum()
        return m(x).square().mean() + (1e4 if torch.compiler.is_exporting() else 0) * far

    with pytest.raises(GraphError, match="is not the program: near the parameters it has the loss"):
        dz.CGE(model, closure=closure, evaluator="propagation").estimate(X)


def batching() -> bool:
    return (
        torch._C._functorch.maybe_get_level(torch.zeros(())) != -1
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


BATCHES: dict[str, tuple[Closure, str]] = {
    "another function": (lambda m, x: m(x).square().mean() + (1 if batching() else 0), r"gives the loss .* under torch.func.vmap and .* by itself"),
    "a number": (lambda m, x: m(x).sum().item(), r"torch.func.vmap cannot run the program \(RuntimeError: .*item"),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_what_no_batch_can_stand_for(name: str) -> None:
    closure, message = BATCHES[name]
    with pytest.raises(UnbatchableError, match=message):
        dz.RGE(linear(), closure=closure, queries=3, evaluator="batched").estimate(X)


def test_references_that_no_batch_follows() -> None:
    model = linear()
    own = (model.weight,)
    with pytest.raises(
        UnbatchableError, match=r"holds references to its parameters that torch.func.vmap cannot replace"
    ):
        dz.RGE(model, closure=lambda m, x: m(x).square().mean() + own[0].sum(), evaluator="batched").estimate(X)


@pytest.mark.parametrize("evaluator", ["batched", "propagation"])
def test_a_black_box_has_no_graph(evaluator: str) -> None:
    box = dz.BlackBox(lambda p: float(p["w"].sum()), {"w": np.zeros(2)})
    with pytest.raises(
        InvalidInputError, match=r"evaluates an nn.Module; use evaluator=dz.SequentialEvaluator\(\) here"
    ):
        dz.CGE(box, evaluator=evaluator).estimate()


class OwnPerturbations:
    """Directions of another kind."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name not in ("displacement", "displace", "taken", "nominal", "combine", "describe", "scale"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_directions_of_another_kind_are_not_propagated() -> None:
    model = linear()
    zo = dz.RGE(model, loss=F.cross_entropy, evaluator="propagation", queries=2)
    probes = zo.probes
    zo.probes = type("Own", (), {"draw": lambda self, context: OwnPerturbations(probes.draw(context))})()
    with pytest.raises(InvalidInputError, match="knows coordinates and random directions, got OwnPerturbations"):
        zo.estimate(X, Y)
    zo.evaluator = dz.SequentialEvaluator()
    assert zo.estimate(X, Y).queries == 3


@pytest.mark.parametrize("evaluator", ["auto", "propagation", "batched", "sequential"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(evaluator: str, value: float) -> None:
    with pytest.raises(NonFiniteLossError, match=rf"loss at the current parameters is {value}: no gradient"):
        dz.CGE(linear(), closure=lambda m, x: m(x).sum() * value, evaluator=evaluator).estimate(X)


def test_a_program_that_gives_two_losses() -> None:
    """Noise is refused where rounding is not expected; the plain loop takes it."""
    noise = itertools.count()
    closure = lambda m, x: m(x).square().mean() * (1 + 0.1 * next(noise))  # noqa: E731
    for make in (dz.CGE, dz.RGE):
        with pytest.raises(
            VerificationError, match=r"not a deterministic function.*evaluator=dz.SequentialEvaluator\(\)"
        ):
            make(linear(), closure=closure).estimate(X)
        assert make(linear(), closure=closure, evaluator="sequential").estimate(X).loss.isfinite()


def test_a_draw_that_does_not_fit() -> None:
    draws = Draws(0)
    with draws.recording():
        torch.rand(3)
    with (
        draws.replaying(strict=True),
        pytest.raises(DrawError, match=r"draw 0 of a query \(aten.rand.default\) does not fit"),
    ):
        torch.rand(4)
    with draws.replaying():
        assert torch.rand(4).shape == (4,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"evaluator": "fast"},
            "evaluator must be an evaluator or one of auto, propagation, batched, sequential; got 'fast'",
        ),
        ({"evaluator": dz.RGE}, r"evaluator must be an evaluator such as dz.SequentialEvaluator\(\)"),
        ({"evaluator": 3}, r"evaluator must be an evaluator such as dz.SequentialEvaluator\(\).*got 3"),
        ({"evaluator": "sequential", "strict": True}, 'strict=True goes with evaluator="auto"'),
        ({"executor": 3, "evaluator": "auto"}, "either evaluator=... or executor=..., not both"),
        ({"executor": 3}, "executor=... is for black boxes"),
        ({"policy": dz.QueryPolicy()}, "policy and journal go with executor="),
        ({"stencil": "middle"}, "stencil must be dz.FORWARD, dz.CENTRAL, their names"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.CGE(linear(), loss=F.cross_entropy, **options)
