"""The composition: what ``estimate`` leaves alone, what ``backward`` fills, what is counted, saved and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import CheckpointError, InvalidInputError, NonFiniteLossError

X, Y = normal(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])


def network() -> nn.Sequential:
    return initialize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3)))


@pytest.fixture
def model() -> nn.Sequential:
    return network()


MAKERS: dict[str, Callable[..., dz.Estimator]] = {
    "cge": lambda model, **options: dz.CGE(model, loss=F.cross_entropy, **options),
    "rge": lambda model, **options: dz.RGE(model, loss=F.cross_entropy, queries=5, **options),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[..., dz.Estimator]:
    return MAKERS[request.param]


class TestDefaults:
    def test_networks_take_the_fastest_way(self, model: nn.Sequential) -> None:
        for make, way in (("cge", "propagation"), ("rge", "batches of full forwards")):
            zo = MAKERS[make](model)
            assert isinstance(zo.evaluator, dz.AutomaticEvaluator)
            zo.estimate(X, Y)
            assert zo.explain().startswith(f"last step: {way}")

    @pytest.mark.parametrize("evaluator", [dz.SequentialEvaluator, "sequential"])
    def test_an_evaluator_may_be_named(self, model: nn.Sequential, evaluator: Any) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, evaluator=evaluator)
        assert isinstance(zo.evaluator, dz.SequentialEvaluator)

    def test_black_boxes_are_queried_one_after_another(self) -> None:
        box = dz.BlackBox(lambda p: 0.0, {"w": np.zeros(2)})
        assert isinstance(dz.CGE(box).evaluator, dz.SequentialEvaluator)
        assert isinstance(dz.RGE(box).evaluator, dz.SequentialEvaluator)

    def test_the_paper_s_values(self, model: nn.Sequential) -> None:
        zo = dz.RGE(model, loss=F.cross_entropy)
        assert (zo.stencil, zo.probes.queries, zo.probes.distribution) == (dz.FORWARD, 192, "gaussian")


class TestBackward:
    def test_gradients_accumulate(self, model: nn.Sequential, make: Callable[..., dz.Estimator]) -> None:
        zo = make(model)
        zo.backward(X, Y)
        once = {name: p.grad.clone() for name, p in model.named_parameters()}
        second = zo.estimate(X, Y)
        zo.backward(X, Y)
        for name, p in model.named_parameters():
            assert torch.equal(p.grad, once[name] + second.gradients[name])

    def test_counters(self, model: nn.Sequential) -> None:
        zo = dz.RGE(model, loss=F.cross_entropy, queries=5, stencil=dz.CENTRAL)
        assert (zo.queries, zo.step) == (0, 0)
        assert zo.estimate(X, Y).queries == 11
        assert (zo.queries, zo.step) == (0, 0), "an estimate counts nothing"
        for _ in range(3):
            zo.backward(X, Y)
        assert (zo.queries, zo.step) == (33, 3)

    def test_coordinates_that_are_not_queried_have_zero_gradient(self, model: nn.Sequential) -> None:
        masks = {"0.weight": torch.eye(5, 4, dtype=torch.bool)}
        zo = dz.CGE(model, loss=F.cross_entropy, sparsity=masks)
        zo.backward(X, Y)
        assert zo.queries == 1 + 4
        assert model[0].weight.grad[masks["0.weight"]].all()
        assert not model[0].weight.grad[~masks["0.weight"]].any()
        assert not model[4].weight.grad.any()

    def test_no_coordinate_at_all(self, model: nn.Sequential) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, sparsity=dz.Coordinates({}))
        assert float(zo.backward(X, Y)) > 0
        assert zo.queries == 1
        assert not any(p.grad.any() for p in model.parameters())

    def test_a_loop_learns(self, make: Callable[..., dz.Estimator]) -> None:
        model = network().eval()
        zo, optimizer = make(model), torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            losses.append(float(zo.backward(X, Y)))
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]

    def test_a_failed_step_leaves_no_trace(self, model: nn.Sequential, make: Callable[..., dz.Estimator]) -> None:
        zo = make(model)
        zo.backward(X, Y)
        with nothing_changes(model), pytest.raises(NonFiniteLossError):
            zo.backward(X * math.nan, Y)
        assert zo.step == 1

    def test_no_autograd_graph(self, model: nn.Sequential, make: Callable[..., dz.Estimator]) -> None:
        zo = make(model)
        loss = zo.backward(X.clone().requires_grad_(), Y)
        assert not loss.requires_grad
        assert not any(p.grad.requires_grad for p in model.parameters())
        assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())
        assert torch.is_grad_enabled()

    def test_gradients_have_the_parameters_dtype_and_shape(self, make: Callable[..., dz.Estimator]) -> None:
        model = network().float()
        make(model).backward(X.float(), Y)
        assert all(p.grad.dtype == torch.float32 and p.grad.shape == p.shape for p in model.parameters())


class TestRandomness:
    def test_same_seed_same_bits(self, model: nn.Sequential, make: Callable[..., dz.Estimator]) -> None:
        a, b, c = (make(model, seed=s).estimate(X, Y) for s in (3, 3, 4))
        assert all(torch.equal(a.gradients[n], b.gradients[n]) for n in a.gradients)
        assert not all(torch.equal(a.gradients[n], c.gradients[n]) for n in a.gradients)

    def test_each_step_draws_new_masks(self, model: nn.Sequential) -> None:
        zo = dz.CGE(model, loss=F.cross_entropy, sparsity=dz.Coordinates({}))
        model[1].eval()
        assert float(zo.backward(X, Y)) != float(zo.backward(X, Y))

    def test_coordinates_have_no_accumulation_dtype(self, model: nn.Sequential) -> None:
        """Nothing is accumulated: the option would have no effect."""
        with pytest.raises(TypeError, match="dtype"):
            dz.CGE(model, loss=F.cross_entropy, dtype=torch.float64)  # type: ignore[call-arg]

    def test_accumulation_dtype(self) -> None:
        model = network().float()
        wide, narrow = (
            dz.RGE(model, loss=F.cross_entropy, queries=50, dtype=d).estimate(X.float(), Y)
            for d in (torch.float64, None)
        )
        for name, value in wide.gradients.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, narrow.gradients[name], rtol=1e-4, atol=1e-5)


class TestState:
    def test_is_json(self, model: nn.Sequential, make: Callable[..., dz.Estimator]) -> None:
        zo = make(model)
        zo.backward(X, Y)
        zo.set_epoch(4)
        state = json.loads(json.dumps(zo.state_dict()))
        other = make(model)
        other.load_state_dict(state)
        assert (other.step, other.epoch, other.queries) == (1, 4, zo.queries)
        assert other.state_dict() == zo.state_dict()

    def test_resumed_steps_are_bitwise_the_same(self, make: Callable[..., dz.Estimator]) -> None:
        straight, first = network(), network()
        zo = make(straight)
        zo.backward(X, Y)
        expected = zo.backward(X, Y)
        interrupted = make(first)
        interrupted.backward(X, Y)
        second = make(first)
        second.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
        assert torch.equal(second.backward(X, Y), expected)
        for a, b in zip(straight.parameters(), first.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(straight.buffers(), first.buffers(), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("changed", [{"step_size": 1e-3}, {"stencil": dz.CENTRAL}, {"seed": 9}])
    def test_other_options_are_refused(
        self, model: nn.Sequential, make: Callable[..., dz.Estimator], changed: dict[str, object]
    ) -> None:
        with pytest.raises(
            CheckpointError, match=f"made by another estimator.*{next(iter(changed))}.*resume with the same"
        ):
            make(model, **changed).load_state_dict(make(model).state_dict())

    def test_another_accumulation_dtype_is_refused(self, model: nn.Sequential) -> None:
        with pytest.raises(CheckpointError, match=r"made by another estimator.*dtype.*resume with the same"):
            MAKERS["rge"](model, dtype=torch.float64).load_state_dict(MAKERS["rge"](model).state_dict())

    def test_another_probe_is_refused(self, model: nn.Sequential) -> None:
        with pytest.raises(CheckpointError, match="probes: 'random' -> 'coordinate'"):
            MAKERS["cge"](model).load_state_dict(MAKERS["rge"](model).state_dict())


class TestBadInput:
    @pytest.mark.parametrize("step_size", [0, 0.0, -1e-3, math.nan, math.inf, True, (1e-3,)])
    def test_step_size(self, model: nn.Sequential, make: Callable[..., dz.Estimator], step_size: object) -> None:
        with pytest.raises(
            InvalidInputError, match=r"step_size must be a finite number above 0, got .*; try step_size=5e-3"
        ):
            make(model, step_size=step_size)

    @pytest.mark.parametrize("dtype", [torch.int64, "float64", 64])
    def test_dtype(self, model: nn.Sequential, dtype: object) -> None:
        with pytest.raises(InvalidInputError, match=r"dtype must be a floating-point torch.dtype"):
            MAKERS["rge"](model, dtype=dtype)

    def test_a_network_needs_a_loss(self, model: nn.Sequential) -> None:
        with pytest.raises(
            InvalidInputError,
            match=r"needs either loss=.*for example loss=torch.nn.functional.cross_entropy, or closure=",
        ):
            dz.CGE(model)

    def test_either_a_loss_or_a_closure(self, model: nn.Sequential) -> None:
        with pytest.raises(InvalidInputError, match="needs either"):
            dz.CGE(model, loss=F.cross_entropy, closure=lambda m, x: m(x).sum())

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"evaluator": "fast"},
                "evaluator must be an evaluator or one of auto, propagation, batched, sequential; got 'fast'",
            ),
            ({"evaluator": dz.Stencil}, "evaluator must be an evaluator such as"),
            ({"evaluator": "sequential", "strict": True}, "strict=True goes with"),
            ({"stencil": "middle"}, "stencil must be dz.FORWARD, dz.CENTRAL"),
            ({"seed": 0.5}, "seed must be an integer"),
            ({"loss": 3}, "loss must be callable"),
        ],
    )
    def test_options(self, model: nn.Sequential, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            dz.CGE(model, **{"loss": F.cross_entropy, **options})

    def test_a_black_box_takes_none(self) -> None:
        box = dz.BlackBox(lambda p: 0.0, {"w": np.zeros(1)})
        with pytest.raises(InvalidInputError, match="leave out loss="):
            dz.CGE(box, loss=F.mse_loss)

    def test_a_plain_function_is_no_model(self) -> None:
        with pytest.raises(InvalidInputError, match=r"use dz.BlackBox\(fn, params\)"):
            dz.CGE(lambda p: 0.0, loss=F.mse_loss)

    @pytest.mark.parametrize(
        ("masks", "message"),
        [
            ({"0.weight": torch.ones(5, 4)}, "must be a bool tensor, got torch.float32; try mask != 0"),
            (
                {"0.wieght": torch.ones(5, 4, dtype=torch.bool)},
                r"'0.wieght', which is not a trainable parameter; expected names",
            ),
            ({"1.running_mean": torch.ones(5, dtype=torch.bool)}, "not a trainable parameter"),
        ],
    )
    def test_masks(self, model: nn.Sequential, masks: dict[str, Tensor], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            dz.CGE(model, loss=F.cross_entropy, sparsity=masks).estimate(X, Y)

    def test_a_number_is_no_sparsity(self, model: nn.Sequential) -> None:
        with pytest.raises(InvalidInputError, match="for a plain sparsity make ratios first"):
            dz.CGE(model, loss=F.cross_entropy, sparsity=0.9)

    def test_random_directions(self, model: nn.Sequential) -> None:
        with pytest.raises(InvalidInputError, match="distribution must be one of"):
            dz.RGE(model, loss=F.cross_entropy, distribution="cauchy")
        with pytest.raises(InvalidInputError, match="queries must be an integer of at least 1, got 0"):
            dz.RGE(model, loss=F.cross_entropy, queries=0)


def test_the_part_of_each_layer_that_was_queried_is_told() -> None:
    model, x, y = nn.Linear(4, 2), torch.randn(3, 4), torch.randn(3, 2)
    sparse = dz.CGE(model, loss=F.mse_loss, sparsity=dz.DynamicRatios({"weight": 0.25}))
    assert sparse.kept() == {}
    sparse.backward(x, y)
    assert sparse.kept() == {"weight": 0.25}
    for complete in (dz.CGE(model, loss=F.mse_loss), dz.RGE(model, loss=F.mse_loss, queries=2)):
        complete.backward(x, y)
        assert complete.kept() == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: dz.CGE(m, loss=F.mse_loss, sparsity={"0.weight": 0.5}), r"got float; .*DynamicRatios\(ratios\)"),
        (lambda m: dz.CGE(m, loss=F.mse_loss, sparsity={"0.weight": [True]}), "must be a bool tensor, got list$"),
        (lambda m: dz.CGE(m, loss=F.mse_loss, sparsity={}), "choose no coordinate"),
        (lambda m: dz.CGE(m, loss=F.mse_loss, sparsity={"0.weight": torch.zeros(5, 4) > 0}), "choose no coordinate"),
        (lambda m: dz.CGE(m, loss=F.mse_loss, sparsity=dz.DynamicRatios), "sparsity is the class DynamicRatios"),
        (lambda m: dz.DynamicRatios(0.9, every=1), r"ratios must be numbers .* got 0\.9; .*uniform_ratios"),
        (lambda m: dz.ExecutorEvaluator(lambda: None, journal="file"), "journal must be a dz.QueryJournal, got 'file'"),
        (lambda m: dz.ExecutorEvaluator(lambda: None, policy=60), "policy must be a dz.QueryPolicy, got 60"),
        (lambda m: dz.minimize(lambda x: 0.0, "x0"), "x0 must be an array, .*got str"),
        (lambda m: dz.CGE(m, loss=F.mse_loss).load_state_dict({}), "no state of an estimator: it has no 'step'"),
        (lambda m: dz.CGE(m, loss=F.mse_loss).load_state_dict(None), "no state of an estimator"),
    ],
)
def test_mistakes_are_answered_where_they_are_made(
    call: Callable[[nn.Module], Any], message: str, model: nn.Sequential
) -> None:
    with pytest.raises((InvalidInputError, CheckpointError), match=message):
        call(model)


@pytest.mark.parametrize("evaluator", ["auto", "sequential", "batched"])
def test_a_loss_that_is_no_number_is_put_down_to_what_shows_it(evaluator: str) -> None:
    model = initialize(nn.Linear(4, 3))
    mask = torch.full((6, 1), -torch.inf, dtype=torch.float64)
    zo = dz.CGE(model, loss=lambda o, t: (o + t[1].softmax(0)).square().mean() * t[0], evaluator=evaluator)
    for x, message in (
        (X * math.nan, r"the batch holds NaN or infinity \(in a tensor of shape \(6, 4\)\)"),
        (X[:0], r"the batch holds nothing \(a tensor of shape \(0, 4\)\)"),
    ):
        with pytest.raises(NonFiniteLossError, match=message):
            zo.estimate(x, (1.0, torch.zeros(1, 1, dtype=torch.float64)))
    with pytest.raises(NonFiniteLossError, match="estimated there; lower the learning rate"):
        zo.estimate(X, (1.0, mask))  # a mask of minus infinity is no fault by itself
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    with pytest.raises(NonFiniteLossError, match="parameter weight holds NaN or infinity already"):
        zo.estimate(X, (1.0, mask))


@pytest.mark.filterwarnings("ignore::deepzero.errors.SlowQueriesWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_batches_have_the_shapes_of_their_parts() -> None:
    model = initialize(nn.Linear(4, 3))

    def closure(m: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([part.sin().mean() for part in m(x).unbind()]).sum()

    zo = dz.CGE(model, closure=closure, step_size=1e-6)
    for rows in (2, 3):
        batch = torch.nested.nested_tensor([X[:rows], X[2:]])
        exact = torch.autograd.grad(closure(model, batch), model.weight)[0]
        torch.testing.assert_close(zo.estimate(batch).gradients["weight"], exact, atol=1e-5, rtol=1e-4)
