"""Objectives: pure functions of named parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import initialize, normal, nothing_changes
from torch import Tensor, nn

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.objective import Batch, Evaluation, NetworkObjective, State, parameters_of

X = normal(6, 4)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def network() -> nn.Sequential:
    return initialize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.4), nn.Linear(5, 3)))


@pytest.fixture
def model() -> nn.Sequential:
    return network()


def test_the_loss_is_the_module_s(model: nn.Sequential) -> None:
    model.eval()
    objective = dz.NetworkObjective(model, F.cross_entropy)
    loss = objective.evaluate(parameters_of(objective), (X, LABELS), seed=0).loss
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, F.cross_entropy(model(X), LABELS).detach())


def test_parameters_are_live_trainable_and_named(model: nn.Sequential) -> None:
    model[0].bias.requires_grad_(False)
    parameters = parameters_of(dz.NetworkObjective(model, F.cross_entropy))
    assert list(parameters) == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert not any(p.requires_grad for p in parameters.values())
    assert parameters["0.weight"].data_ptr() == model[0].weight.data_ptr()


def test_tied_parameters_appear_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    objective = dz.NetworkObjective(nn.Sequential(first, second), F.mse_loss)
    assert list(parameters_of(objective)) == ["0.weight", "0.bias", "1.bias"]
    moved = {name: torch.zeros_like(p) for name, p in parameters_of(objective).items()}
    target = torch.full((6, 4), 2.0)
    assert float(objective.evaluate(moved, (X.float(), target), seed=0).loss) == 4.0


def test_evaluation_changes_nothing(model: nn.Sequential) -> None:
    objective = dz.NetworkObjective(model, F.cross_entropy)
    moved = {name: p + 1 for name, p in parameters_of(objective).items()}
    with nothing_changes(model):
        objective.evaluate(moved, (X, LABELS), seed=0)


def test_a_module_under_two_names_survives_evaluation() -> None:
    norm = nn.BatchNorm1d(4)
    model = initialize(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm))
    objective = dz.NetworkObjective(model, F.mse_loss)
    names = list(parameters_of(objective))
    objective.evaluate(parameters_of(objective), (X, X), seed=0)
    assert list(parameters_of(objective)) == names
    assert isinstance(norm.weight, nn.Parameter)


def test_buffers_move_only_when_committed(model: nn.Sequential) -> None:
    objective = dz.NetworkObjective(model, F.cross_entropy)
    answer = objective.evaluate(parameters_of(objective), (X, LABELS), seed=0)
    twin = network()
    twin(X)
    assert int(model[1].num_batches_tracked) == 0
    objective.commit(answer.buffers)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=0, atol=0)


def test_draws_depend_on_the_seed_only(model: nn.Sequential) -> None:
    objective = dz.NetworkObjective(model, F.cross_entropy)
    losses = [float(objective.evaluate(parameters_of(objective), (X, LABELS), seed=s).loss) for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.cross_entropy, LABELS),
        (F.cross_entropy, torch.tensor([0, -100, 1, 1, -100, 2])),
        (F.mse_loss, normal(6, 3, seed=4).float()),
        (lambda o, t: F.cross_entropy(o, t, reduction="none"), LABELS),
    ],
)
def test_losses_are_averaged_in_float64(loss: object, target: Tensor) -> None:
    model = initialize(nn.Linear(4, 3), dtype=torch.float32)
    objective = dz.NetworkObjective(model, loss)
    found = objective.evaluate(parameters_of(objective), (X.float(), target), seed=0).loss
    wide = target.double() if target.is_floating_point() else target
    expected = loss(model(X.float()).detach().double(), wide).mean()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_class_probabilities_as_targets() -> None:
    model = initialize(nn.Linear(4, 3))
    target = torch.softmax(normal(6, 3, seed=4), 1)
    objective = dz.NetworkObjective(model, F.cross_entropy)
    found = objective.evaluate(parameters_of(objective), (X, target), seed=0).loss
    torch.testing.assert_close(found, F.cross_entropy(model(X), target).detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dz.NetworkObjective(lambda x: x, F.mse_loss), r"torch.nn.Module, got function.*dz.BlackBox"),
        (lambda: dz.NetworkObjective(nn.Linear(1, 1), "mse"), "loss must be callable"),
        (lambda: dz.NetworkObjective(nn.ReLU(), F.mse_loss), "no trainable parameter"),
        (lambda: dz.NetworkObjective(nn.Linear(1, 1).requires_grad_(False), F.mse_loss), "no trainable parameter"),
        (lambda: dz.BlackBox(3, {"w": np.zeros(1)}), "fn must be callable"),
        (lambda: dz.BlackBox(float, {}), "at least one array"),
        (lambda: dz.BlackBox(float, {"w": [1.0]}), r"params\['w'\] must be a tensor or a NumPy array, got list"),
        (lambda: dz.BlackBox(float, {"w": np.zeros(2, dtype=int)}), r"real numbers, got int64.*astype"),
    ],
)
def test_bad_objectives(make: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize("batch", [(), (X,), (X, LABELS, LABELS)])
def test_a_network_takes_two_arguments(model: nn.Sequential, batch: tuple[Tensor, ...]) -> None:
    objective = dz.NetworkObjective(model, F.cross_entropy)
    with pytest.raises(InvalidInputError, match=rf"zo.backward\(x, y\); got {len(batch)}"):
        objective.evaluate(parameters_of(objective), batch, seed=0)


def test_labels_out_of_range(model: nn.Sequential) -> None:
    objective = dz.NetworkObjective(model, F.cross_entropy)
    with pytest.raises(IndexError, match="out of bounds"):
        objective.evaluate(parameters_of(objective), (X, LABELS + 1), seed=0)


class TestBlackBox:
    def test_arrays_stay_what_they_are(self) -> None:
        seen = {}

        def fn(params: dict[str, object], scale: float) -> float:
            seen.update(params)
            return scale * float(params["n"].sum() + params["t"].sum())

        box = dz.BlackBox(fn, {"n": np.ones(3), "t": torch.ones(2)})
        answer = box.evaluate(parameters_of(box), (2.0,), seed=0)
        assert isinstance(seen["n"], np.ndarray)
        assert isinstance(seen["t"], Tensor)
        assert answer.loss.dtype == torch.float64
        assert float(answer.loss) == 10.0
        assert answer.buffers == {}

    def test_an_optimizer_updates_the_user_s_arrays(self) -> None:
        start = np.array([1.0, 2.0], dtype=np.float32)
        box = dz.BlackBox(lambda p: float((p["w"] ** 2).sum()), {"w": start})
        zo = dz.CGE(box, step_size=1e-3, stencil=dz.CENTRAL)
        zo.backward()
        torch.optim.SGD(box.parameters(), lr=0.5).step()
        assert box.values["w"] is start
        np.testing.assert_allclose(start, 0, atol=1e-3)

    @pytest.mark.parametrize("kind", ["array", "tensor", "dict", "module"])
    def test_torch_optim_just_works(self, kind: str) -> None:
        """Parameters are those of a module; the next query sees the step; what was given holds the result."""
        module = nn.Linear(2, 1)
        given: Any = {
            "array": np.ones(2),
            "tensor": torch.ones(2, dtype=torch.float64),
            "dict": {"n": np.ones(2), "t": torch.ones((), dtype=torch.float64)},
            "module": module.double(),
        }[kind]
        seen: list[float] = []

        def fn(params: Any) -> float:
            arrays = params.values() if isinstance(params, dict) else [params]
            seen.append(float(sum((np.asarray(array) ** 2).sum() for array in arrays)))
            return seen[-1]

        box = dz.BlackBox(fn, given)
        zo = dz.CGE(box, step_size=0.5, stencil=dz.CENTRAL)  # exact on a quadratic function
        start = float(zo.backward())
        torch.optim.SGD(box.parameters(), lr=0.25).step()
        seen.clear()
        assert float(zo.backward()) == seen[0] == pytest.approx(start / 4)
        torch.optim.Adam(box.named_parameters(), lr=1e-3).step()
        assert box.value is given
        names = {"array": ["x"], "tensor": ["x"], "dict": ["n", "t"], "module": ["weight", "bias"]}[kind]
        assert [name for name, _ in box.named_parameters()] == names
        assert all(isinstance(p, nn.Parameter) for p in box.parameters())
        if kind in ("array", "tensor"):
            assert given.tolist() == pytest.approx([0.5 - 1e-3] * 2)

    @pytest.mark.parametrize("answer", [1, 1.0, np.float32(1), np.array([1.0]), torch.tensor(1.0), torch.ones(1, 1)])
    def test_answers_that_are_one_number(self, answer: object) -> None:
        box = dz.BlackBox(lambda p: answer, {"w": np.zeros(1)})
        assert float(box.evaluate(parameters_of(box), (), seed=0).loss) == 1.0

    def test_parameters_can_be_iterated_over_again(self) -> None:
        """As of a module: an iterator each time, of the same tensors."""
        box = dz.BlackBox(lambda p: 0.0, {"a": np.ones(2), "b": np.ones(1)})
        first, second = list(box.parameters()), list(box.parameters())
        assert [id(p) for p in first] == [id(p) for p in second] == [id(p) for _, p in box.named_parameters()]
        assert next(box.parameters()) is first[0]

    @pytest.mark.parametrize("answer", [None, "one", np.ones(2), torch.ones(0), {"loss": 1.0}])
    def test_answers_that_are_not(self, answer: object) -> None:
        box = dz.BlackBox(lambda p: answer, {"w": np.zeros(1)})
        with pytest.raises(InvalidInputError, match="fn must return one number"):
            box.evaluate(parameters_of(box), (), seed=0)

    def test_a_query_may_write_into_its_arguments(self) -> None:
        """A black box that changes its arrays in place must not change the parameters."""

        def careless(params: dict[str, np.ndarray]) -> float:
            params["w"] *= 2
            return float(params["w"].sum())

        box = dz.BlackBox(careless, {"w": np.ones(3), "v": np.ones(2)})
        estimate = dz.CGE(box, step_size=1e-3).estimate()
        assert box.values["w"].tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(estimate.gradients["w"], torch.full((3,), 2.0, dtype=torch.float64))


class Bowl:
    """An objective that gives its parameters by a mapping of their owners."""

    def __init__(self) -> None:
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def owners(self) -> dict[str, Tensor]:
        return {"w": self.w}

    def evaluate(self, parameters: dict[str, Tensor], batch: Batch, *, seed: int) -> Evaluation:
        return Evaluation(parameters["w"].square().sum())

    def commit(self, buffers: State) -> None:
        pass


def test_an_objective_may_give_its_parameters_by_owners() -> None:
    bowl = Bowl()
    assert float(dz.CGE(bowl, step_size=1e-6).backward()) == 5.0
    assert torch.allclose(bowl.w.grad, 2 * bowl.w.detach(), atol=1e-4)


def test_values_of_a_network_by_name_and_its_parameters_themselves() -> None:
    objective = NetworkObjective(nn.Linear(2, 1), F.mse_loss)
    assert list(objective.parameters()) == list(objective.owners()) == ["weight", "bias"]
    assert not any(value.requires_grad for value in objective.parameters().values())
    assert objective.owners()["weight"] is objective.model.weight


class Mixed(nn.Module):
    """A network with an autocast of its own around it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x)


@pytest.mark.parametrize("evaluator", ["auto", "sequential"])
def test_autocast_around_an_estimate_is_as_autocast_inside(evaluator: str) -> None:
    """It keeps parameters in another type from the first forward on, which a query must not find in place of its own."""
    network = initialize(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).float()
    x, loss = X.float(), lambda output, target: F.cross_entropy(output.float(), target)
    options: dict[str, Any] = {"loss": loss, "step_size": 0.2, "stencil": dz.CENTRAL, "evaluator": evaluator}
    inside = dz.CGE(Mixed(network), **options).estimate(x, LABELS)
    zo = dz.CGE(network, **options)
    without = zo.estimate(x, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss(network(x), LABELS).backward()  # fills what autocast keeps
        around = zo.estimate(x, LABELS)
        assert torch.is_autocast_cache_enabled()
    assert torch.equal(around.loss, inside.loss)
    assert around.loss != without.loss
    for name, gradient in around.gradients.items():
        assert gradient.norm() > 1e-3, name
        assert torch.equal(gradient, inside.gradients[f"network.{name}"])
    assert all(torch.equal(g, without.gradients[n]) for n, g in zo.estimate(x, LABELS).gradients.items())
