"""A network inside of a simulation, and what happens when its solver fails."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import deepzero as dz
from deepzero.errors import InvalidInputError, NonFiniteLossError, QueryError, RowError
from deepzero.opaque.rows import RowFunction, Rows

ROWS, CELLS = 3, 4
EVALUATORS = ["auto", "batched", "sequential"]


class Ring:
    """Cells around a ring, each pulled to its neighbour with a stiffness and driven by a load: PyTorch."""

    def arrays(self, state: Any) -> tuple[Any, ...]:
        return state["x"], state["stiffness"], state["load"]

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        return x + 0.2 * stiffness * (x.roll(1, 1) - x) + 0.1 * load * x.sin()


class RingOfNumpy(Ring):
    """The same in NumPy."""

    numpy = True

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        return x + 0.2 * stiffness * (np.roll(x, 1, 1) - x) + 0.1 * load * np.sin(x)


class Noted(Ring):
    """Notes what it was asked, call by call."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        self.asked.append(x.clone())
        return super().step(x, stiffness, load)


def state_of(count: int = ROWS) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(count, CELLS, generator=draw, dtype=torch.float64),
        "stiffness": torch.rand(count, 1, generator=draw, dtype=torch.float64),
        "load": torch.arange(1, count + 1)[:, None],  # of integers
    }


class Correction(nn.Module):
    """Values and constants to an increment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(CELLS + 2, 3).double(), nn.Linear(3, CELLS).double()

    def forward(self, x: Tensor, stiffness: Tensor, load: Tensor) -> Tensor:
        return 0.1 * self.out(self.hidden(torch.cat([x, stiffness, load.double()], dim=1)).tanh())


Y = torch.linspace(-1, 1, CELLS, dtype=torch.float64)


def loss_of(trajectory: Tensor, y: Tensor) -> Tensor:
    return (trajectory - y).square().mean()


def gradients(corrected: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By autograd around the solver, of the network and of the state at the start."""
    x = state["x"].clone().requires_grad_()
    loss_of(corrected({**state, "x": x}), Y).backward()
    assert x.grad is not None
    return {"x": x.grad, **{name: p.grad for name, p in corrected.named_parameters() if p.grad is not None}}


# What it computes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("simulator", [Ring(), RingOfNumpy()], ids=["torch", "numpy"])
def test_it_is_an_unrolled_loop(simulator: Ring, steps: int) -> None:
    """Bit for bit: a step of the solver, then the network's increment of what came out."""
    network, state = Correction(), state_of()
    constants = [state["stiffness"], state["load"]]
    values, expected = state["x"], []
    for _ in range(steps):
        if simulator.__class__ is Ring:
            values = simulator.step(values, *constants)
        else:
            values = torch.from_numpy(simulator.step(*(value.numpy() for value in (values, *constants))))
        with torch.no_grad():
            values = values + network(values, *constants)
        expected.append(values)
    with torch.no_grad():
        found = dz.Corrected(simulator, network, steps=steps)(state)
    assert found.shape == (ROWS, steps, CELLS)
    assert torch.equal(found, torch.stack(expected, dim=1))


def test_without_a_network_it_is_the_solver_alone() -> None:
    simulator, state = Ring(), state_of()
    once = simulator.step(*simulator.arrays(state))
    twice = simulator.step(once, state["stiffness"], state["load"])
    assert torch.equal(dz.Corrected(simulator, steps=2)(state), torch.stack([once, twice], dim=1))


def test_a_simulator_of_pytorch_may_be_differentiated_itself() -> None:
    simulator, state = Ring(), state_of()
    corrected = dz.Corrected(simulator, Correction(), steps=3, differentiable=True)
    assert corrected.solver is None
    assert torch.equal(corrected(state), dz.Corrected(simulator, Correction(), steps=3)(state))


def test_its_state_is_that_of_its_network_and_its_counters() -> None:
    corrected = dz.Corrected(Ring(), Correction(), steps=2)
    corrected(state_of())
    twin = copy.deepcopy(corrected)
    assert torch.equal(twin(state_of()), corrected(state_of()))
    other = dz.Corrected(Ring(), Correction(), steps=2)
    other.load_state_dict(corrected.state_dict())
    assert corrected.solver is not None
    assert other.solver is not None
    assert other.solver.queries == corrected.solver.queries == 2 * 2 * ROWS


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("simulator", [Ring(), RingOfNumpy()], ids=["torch", "numpy"])
def test_its_gradient_is_that_through_the_solver(simulator: Ring) -> None:
    exact = gradients(dz.Corrected(Ring(), Correction(), steps=4, differentiable=True), state_of())
    options = {"directions": "coordinates", "stencil": dz.CENTRAL}
    found = gradients(dz.Corrected(simulator, Correction(), steps=4, **options), state_of())
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-6, name


def cge(corrected: nn.Module, evaluator: str = "auto", **options: Any) -> dz.CGE:
    return dz.CGE(corrected, loss=loss_of, evaluator=evaluator, **{"step_size": 1e-5, "stencil": dz.CENTRAL, **options})


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_coordinates_of_the_network(evaluator: str) -> None:
    exact = gradients(dz.Corrected(Ring(), Correction(), steps=3, differentiable=True), state_of())
    found = cge(dz.Corrected(RingOfNumpy(), Correction(), steps=3), evaluator).estimate(state_of(), Y).gradients
    for name, gradient in found.items():
        assert float((gradient - exact[name]).norm() / exact[name].norm()) < 1e-6, name


@pytest.mark.parametrize("evaluator", ["auto", "sequential"])
def test_what_no_weight_reaches_is_asked_once_a_step(evaluator: str) -> None:
    """The solver's first step: all queries of a step have it in common, however they are evaluated."""
    simulator, state = Noted(), state_of()
    zo = cge(dz.Corrected(simulator, Correction(), steps=3), evaluator)
    zo.backward(state, Y)  # with its checks
    simulator.asked.clear()
    zo.backward(state, Y)
    count, asked = 2 * sum(p.numel() for p in Correction().parameters()), torch.cat(simulator.asked)
    assert len(asked) == ROWS * (3 + 2 * count)
    assert int((asked == state["x"][:, None]).all(-1).sum()) == ROWS


def test_all_perturbed_networks_advance_together() -> None:
    """The numbers of a loop of forwards, from a few calls of the solver."""
    estimates, calls, rows = {}, {}, {}
    for evaluator in ("auto", "sequential"):
        simulator = Noted()
        corrected = dz.Corrected(simulator, Correction(), steps=3)
        zo = cge(corrected, evaluator)
        estimates[evaluator] = zo.estimate(state_of(), Y).gradients
        simulator.asked.clear()
        before = corrected.solver.queries
        zo.estimate(state_of(), Y)
        calls[evaluator], rows[evaluator] = len(simulator.asked), corrected.solver.queries - before
    count = 2 * sum(p.numel() for p in Correction().parameters())
    assert rows["auto"] <= rows["sequential"]
    assert calls["sequential"] == 3 + 2 * count
    assert calls["auto"] <= 3 + 2 * 2 * 4  # for each of the three steps, and of the stencil's two nodes by parameter
    for name, gradient in estimates["sequential"].items():
        assert torch.allclose(estimates["auto"][name], gradient, rtol=1e-5, atol=1e-9), name


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_its_solver_may_run_elsewhere(pool: Any) -> None:
    here = gradients(dz.Corrected(RingOfNumpy(), Correction(), steps=2, directions="coordinates"), state_of())
    with pool(2) as workers:
        options = {"directions": "coordinates", "executor": workers}
        there = gradients(dz.Corrected(RingOfNumpy(), Correction(), steps=2, **options), state_of())
    assert all(torch.equal(there[name], gradient) for name, gradient in here.items())


# What it refuses ------------------------------------------------------------------------------------------------------


class OnlyArrays:
    def arrays(self, state: Any) -> Any:
        return (state,)


class OnlyStep:
    def step(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        (OnlyArrays(), r"OnlyArrays has no step$"),
        (OnlyStep(), r"OnlyStep has no arrays$"),
        (3, r"int has no arrays and no step$"),
    ],
)
def test_a_simulator_that_lacks_a_function(simulator: Any, message: str) -> None:
    assert not isinstance(simulator, dz.Simulator)
    with pytest.raises(InvalidInputError, match=message):
        dz.Corrected(simulator, Correction())


def test_two_functions_make_a_simulator() -> None:
    assert isinstance(Ring(), dz.Simulator)


class Wide(nn.Module):
    """An increment with a column too many."""

    def forward(self, x: Tensor, *constants: Tensor) -> Tensor:
        return torch.cat([x, constants[0]], dim=1)


def test_an_increment_of_another_shape() -> None:
    with pytest.raises(InvalidInputError, match=r"of shape \(3, 4\); it returned \(3, 5\)"):
        dz.Corrected(Ring(), Wide())(state_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulator": RingOfNumpy(), "differentiable": True}, "does not go with a simulator of NumPy arrays"),
        ({"differentiable": True, "queries": 3, "rows": 2}, "does not go with queries, rows=..., which a black box"),
        ({"network": torch.sin}, "network must be an nn.Module or None, got builtin"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"directions": "sobol"}, "directions must be one of"),
    ],
)
def test_options_are_checked_when_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dz.Corrected(**{"simulator": Ring(), "network": Correction(), **options})


@pytest.mark.parametrize(
    "limit", [{"timeout": 1.0}, {"per_second": 10.0}, {"in_flight": 2}], ids=lambda one: next(iter(one))
)
def test_limits_need_an_executor(limit: dict[str, Any]) -> None:
    policy = dz.QueryPolicy(**limit)
    with pytest.raises(InvalidInputError, match=f"policy has {next(iter(limit))}=..., which needs an executor"):
        dz.Corrected(Ring(), Correction(), policy=policy)
    with ThreadPoolExecutor(1) as pool:
        dz.Corrected(Ring(), Correction(), policy=policy, executor=pool)


# A solver that fails --------------------------------------------------------------------------------------------------


class Push(nn.Module):
    """A number to add to each cell, in every row."""

    def __init__(self) -> None:
        super().__init__()
        self.push = nn.Parameter(torch.linspace(0.1, 0.4, CELLS, dtype=torch.float64))

    def forward(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self.push.expand_as(x)


STEP, WEAK, WEAK_ROW = 1e-4, 2, 1
"""The query that fails: the push of one cell is moved by the step; it fails in one row."""


@functools.cache
def weak_value(side: int = 1) -> float:
    """What stands in the weak cell when the solver is asked for its second step in the query that fails."""
    with torch.no_grad():
        first = dz.Corrected(Ring(), Push(), steps=1)(state_of())
    return float(first[WEAK_ROW, 0, WEAK]) + side * STEP


class Weak(RingOfNumpy):
    """Fails where the weak cell holds one certain value: in one row of one perturbed query.

    Args:
        fails: NaN in that row of the answer, or an exception.
        times: so often, then never again.
        side: whether the push is larger or smaller.
    """

    def __init__(self, fails: str, times: int = 10**6, side: int = 1) -> None:
        self.fails, self.left, self.value = fails, times, weak_value(side)

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        answer = super().step(x, stiffness, load)
        failing = np.abs(x[:, WEAK] - self.value) < STEP / 10**4
        if self.left > 0 and failing.any():
            self.left -= 1
            if self.fails == "raises":
                raise FloatingPointError("the pressure solver diverged")
            answer[failing] = np.nan
        return answer


def weak(
    fails: str, policy: dz.QueryPolicy | None, *, times: int = 10**6, steps: int = 2, side: int = 1
) -> dz.Corrected:
    return dz.Corrected(Weak(fails, times, side), Push(), steps=steps, policy=policy)


@functools.cache
def healthy(steps: int = 2) -> Tensor:
    """The gradient where nothing fails."""
    return (
        cge(dz.Corrected(RingOfNumpy(), Push(), steps=steps), step_size=STEP)
        .estimate(state_of(), Y)
        .gradients["network.push"]
    )


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(
    ("fails", "policy"),
    [
        pytest.param("nan", dz.QueryPolicy(on_nan="skip"), id="nan"),
        pytest.param("raises", dz.QueryPolicy(on_error="skip"), id="error"),
        pytest.param(
            "raises",
            dz.QueryPolicy(retries=1, backoff=0.0, exhausted="skip"),
            id="error twice",
        ),
        pytest.param("raises", dz.QueryPolicy(on_error="skip", on_nan="skip"), id="either"),
    ],
)
def test_a_query_that_is_skipped(fails: str, policy: dz.QueryPolicy, evaluator: str) -> None:
    """It contributes 0 and is counted; the other coordinates are what they are."""
    corrected = weak(fails, policy)
    zo = cge(corrected, evaluator, step_size=STEP)
    zo.backward(state_of(), Y)
    found, expected = corrected.network.push.grad, healthy()
    assert float(found[WEAK]) == 0.0
    assert float(expected[WEAK].abs()) > 0.1
    others = [k for k in range(CELLS) if k != WEAK]
    assert torch.allclose(found[others], expected[others], rtol=1e-6)
    assert zo.skipped == 1
    assert corrected.solver.ledger.skipped == 1
    assert zo.estimate(state_of(), Y).skipped == 1


def test_what_was_skipped_goes_on_through_the_simulation() -> None:
    """One direction without a slope, however many steps of the solver come after the one that failed."""
    corrected = weak("nan", dz.QueryPolicy(on_nan="skip"), steps=4)
    zo = cge(corrected, step_size=STEP)
    zo.backward(state_of(), Y)
    found, expected = corrected.network.push.grad, healthy(steps=4)
    others = [k for k in range(CELLS) if k != WEAK]
    assert zo.skipped == 1
    assert float(found[WEAK]) == 0.0
    assert torch.allclose(found[others], expected[others], rtol=1e-6)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("policy", [None, dz.QueryPolicy(), dz.QueryPolicy(on_error="skip")])
def test_nan_without_a_policy_that_skips_it(policy: dz.QueryPolicy | None, evaluator: str) -> None:
    with pytest.raises(NonFiniteLossError, match=r'NaN or infinity.*on_nan="skip"'):
        cge(weak("nan", policy), evaluator, step_size=STEP).estimate(state_of(), Y)


class Dead(Ring):
    """Every answer is NaN in its second row."""

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        answer = super().step(x, stiffness, load)
        answer[1:2] = torch.nan
        return answer


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_base_query_is_never_skipped(evaluator: str) -> None:
    corrected = dz.Corrected(Dead(), Push(), steps=2, policy=dz.QueryPolicy(on_nan="skip", on_error="skip"))
    with pytest.raises(NonFiniteLossError, match="for row 1"):
        corrected(state_of())
    with pytest.raises(NonFiniteLossError, match="for row 1"):
        cge(corrected, evaluator).estimate(state_of(), Y)
    assert corrected.solver.ledger.skipped == 0


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_step_that_raises_is_made_again(evaluator: str, times: int) -> None:
    corrected = weak("raises", dz.QueryPolicy(retries=times, backoff=0.0), times=times)
    zo = cge(corrected, evaluator, step_size=STEP)
    zo.backward(state_of(), Y)
    assert corrected.simulator.left == 0
    assert torch.allclose(corrected.network.push.grad, healthy(), rtol=1e-6)
    assert (zo.skipped, corrected.solver.ledger.skipped) == (0, 0)


def test_without_a_policy_an_error_comes_out_as_it_is() -> None:
    with pytest.raises(FloatingPointError, match="the pressure solver diverged"):
        cge(weak("raises", None), step_size=STEP).estimate(state_of(), Y)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    "evaluator",
    [
        "auto",
        "batched",
        "sequential",
    ],
)
def test_a_row_that_fails_for_good_is_named(evaluator: str, side: int) -> None:
    """The row, in which query of the estimate, what the solver said, and what it was asked."""
    corrected = weak("raises", dz.QueryPolicy(retries=1, backoff=0.0), side=side)
    with pytest.raises(RowError) as caught:
        cge(corrected, evaluator, step_size=STEP).estimate(state_of(), Y)
    error, said = caught.value, str(caught.value)
    assert isinstance(error, QueryError)
    assert f"row {error.row}, after 2 tries: the black box raised FloatingPointError" in said
    assert "the pressure solver diverged" in said
    values, stiffness, load = error.inputs
    assert values.shape == (1, CELLS)
    assert float(values[0, WEAK]) == pytest.approx(weak_value(side), abs=STEP / 100)
    assert torch.equal(stiffness[0], state_of()["stiffness"][WEAK_ROW])
    assert torch.equal(load[0], state_of()["load"][WEAK_ROW])
    assert said.endswith(f"(asked for network.push[{WEAK}] moved by {side * STEP:g})")


def test_a_random_direction_that_fails_for_good_is_named() -> None:
    class Base(Ring):
        """Once it is armed it answers the base query alone."""

        def __init__(self) -> None:
            self.known: list[Tensor] = []
            self.armed = False

        def step(self, x: Any, stiffness: Any, load: Any) -> Any:
            if self.armed and not any(torch.equal(x, known) for known in self.known):
                raise FloatingPointError("not the base query")
            self.known.append(x.clone())
            return super().step(x, stiffness, load)

    corrected = dz.Corrected(Base(), Push(), steps=2, policy=dz.QueryPolicy(retries=0))
    corrected(state_of())
    zo = dz.RGE(corrected, loss=loss_of, queries=3, step_size=1e-3, seed=1)
    zo.estimate(state_of(), Y)
    corrected.simulator.armed = True
    zo.step = 1
    with pytest.raises(RowError, match=r"not the base query.*\(asked for .* direction [0-2] moved by 0.001\)$"):
        zo.estimate(state_of(), Y)


def test_a_row_that_fails_in_a_forward_is_named() -> None:
    """Outside of an estimate there is no perturbation to name."""

    class Diverges(Ring):
        def step(self, x: Any, stiffness: Any, load: Any) -> Any:
            if (load == 3).any():
                raise FloatingPointError("a load of 3")
            return super().step(x, stiffness, load)

    corrected = dz.Corrected(Diverges(), Push(), policy=dz.QueryPolicy(retries=0))
    with pytest.raises(RowError, match=r"^row 2, after 1 try: .*a load of 3.*\.inputs$") as caught:
        corrected(state_of())
    assert torch.equal(caught.value.inputs[0], state_of()["x"][2:])


@pytest.mark.parametrize("way", ["autograd", "estimator"])
def test_a_state_that_only_a_check_makes_up_may_fail(way: str) -> None:
    """No query of the gradient fails."""

    class Delicate(RingOfNumpy):
        def step(self, x: Any, stiffness: Any, load: Any) -> Any:
            answer = super().step(x, stiffness, load)
            answer[np.abs(x).max(1) > 1.05 * limit] = np.nan
            return answer

    state, options = state_of(), {"steps": 2, "directions": "coordinates"}
    limit = float(state["x"].abs().max())
    corrected = dz.Corrected(Delicate(), Push(), policy=dz.QueryPolicy(on_nan="skip"), **options)
    if way == "autograd":
        found = gradients(corrected, state)["network.push"]
    else:
        found = cge(corrected, step_size=STEP).estimate(state, Y).gradients["network.push"]
    assert corrected.solver.ledger.skipped == 0
    assert torch.allclose(found, healthy(), rtol=1e-6)


# A solver that compiles itself ----------------------------------------------------------------------------------------


def by_trace(fn: Callable[..., Tensor], *given: Tensor) -> Tensor:
    return torch.jit.trace(fn, given, check_trace=False)(*given)


def by_make_fx(fn: Callable[..., Tensor], *given: Tensor) -> Tensor:
    return make_fx(fn)(*given)(*given)


def by_autograd(fn: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """A step that takes a gradient of its own, as an implicit solver may."""
    with torch.enable_grad():
        x = given[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(fn(x, *given[1:]).square().sum() / 2, x)
    return slope


class Compiling(Ring):
    def __init__(self, way: Callable[..., Tensor]) -> None:
        self.way = way

    def step(self, x: Any, stiffness: Any, load: Any) -> Any:
        return self.way(lambda *given: Ring.step(self, *given), x, stiffness, load)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("way", [by_trace, by_make_fx, by_autograd])
def test_a_solver_may_trace_itself(way: Callable[..., Tensor], evaluator: str) -> None:
    """Inside of an operation as outside of it."""
    corrected = dz.Corrected(Compiling(way), Push(), steps=2, directions="coordinates")
    exact = gradients(corrected, state_of())["network.push"]
    found = cge(corrected, evaluator).estimate(state_of(), Y).gradients["network.push"]
    assert torch.allclose(found, exact, rtol=1e-6)


def test_a_locality_is_declared_of_the_values_beside_constants() -> None:
    """The step of a ring couples neighbours; its constant wants no gradient and does not count."""

    class Diffusing:
        def arrays(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return state["u"], state["k"]

        def step(self, u: Tensor, k: Tensor) -> Tensor:
            around = torch.nn.functional.pad(u, (1, 1))
            return u + k.unsqueeze(2) * (around[..., 2:] + around[..., :-2] - 2 * u) + 0.1 * u**2

    network = nn.Conv1d(1, 1, 3, padding=1).double()

    class Correct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = network

        def forward(self, u: Tensor, k: Tensor) -> Tensor:
            found: Tensor = self.conv(u)
            return found

    generator = torch.Generator().manual_seed(0)
    state = {
        "u": torch.randn(2, 1, 12, generator=generator, dtype=torch.float64),
        "k": torch.full((2, 1), 0.1, dtype=torch.float64),
    }
    found = {}
    for name, options in (("local", {"locality": dz.Conv(kernel=3)}), ("all", {})):
        corrected = dz.Corrected(Diffusing(), Correct(), steps=2, directions="coordinates", **options)
        network.zero_grad()
        corrected(state).square().sum().backward()
        assert network.weight.grad is not None
        assert corrected.solver is not None
        found[name] = network.weight.grad.clone(), corrected.solver.queries
    assert torch.allclose(found["local"][0], found["all"][0], rtol=1e-6)
    assert found["local"][1] < found["all"][1]


def test_a_row_keeps_its_number_behind_rows_that_are_not_asked() -> None:
    """Where an earlier answer was skipped, the rows after it are called as they stand in the call."""

    def fails(z: Tensor) -> Tensor:
        if bool((z > 5).any()):
            raise OSError("the solver died")
        return z**2

    rows = torch.tensor([[torch.nan], [1.0], [9.0]])
    asked = Rows(RowFunction(fails), policy=dz.QueryPolicy(retries=0, on_nan="skip"))
    answers = asked.ask([rows[:2]], [], required=False).flatten().tolist()
    assert math.isnan(answers[0])
    assert answers[1] == 1.0
    with pytest.raises(RowError, match=r"^row 2, after 1 try") as caught:
        asked.ask([rows], [], required=False)
    assert caught.value.row == 2
