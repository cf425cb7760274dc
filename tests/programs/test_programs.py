"""Whatever eager PyTorch runs comes out right, step after step, whatever the script does in between."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager import Replay
from grammar import PROGRAMS, Program, Spec
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pieces import BRANCHING, PIECES, RANDOM, UNTRACEABLE
from program_losses import TARGETS
from torch import Tensor

import deepzero as dz
from deepzero.coordinates import Coordinates

STEPS = 3
MOVED = 0.05
"""What plain SGD moves the parameters by, times the gradient."""


def step_size(spec: Spec) -> float:
    return 1e-4 if exact(spec) else 1e-2


def tolerance(spec: Spec) -> float:
    """Of slopes of order 1: what the rounding of a loss is to the step."""
    return 1e-6 if exact(spec) else 2e-3


def exact(spec: Spec) -> bool:
    return spec.dtype == torch.float64 and "SinglePrecision" not in spec.pieces


def chosen(program: Program, step: int) -> Coordinates:
    """Two coordinates of every trainable parameter."""
    generator = torch.Generator().manual_seed(40 + step)
    return Coordinates(
        {name: torch.randperm(p.numel(), generator=generator)[:2] for name, p in program.trainable().items()}
    )


class Chosen:
    """The schedule of :func:`chosen`."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def coordinates(self, context: Any) -> Coordinates:
        return chosen(self.program, context.step)


def assert_coordinates(found: dict[str, Tensor], replay: Replay, coordinates: Coordinates, spec: Spec) -> None:
    wrong = []
    for name in coordinates:
        for index in coordinates[name].tolist():
            expected = replay.coordinate(name, index, step_size(spec))
            got = float(found[name].reshape(-1)[index])
            if not abs(got - expected) <= tolerance(spec) * (1 + abs(expected)):
                wrong.append(f"step {replay.step}, {name}[{index}]: {got:.8g}, by eager forwards {expected:.8g}")
    assert not wrong, "\n".join(wrong)


def assert_direction(found: dict[str, Tensor], replay: Replay, spec: Spec) -> None:
    """An estimate from one direction with entries 1 and -1 is ``s u`` with ``s`` the slope along ``u``: or along ``-u``."""
    size = next(float(g.reshape(-1)[0].abs()) for g in found.values())
    assert size > 0
    ahead = {name: g / size for name, g in found.items()}
    for u in ahead.values():
        torch.testing.assert_close(u.abs(), torch.ones_like(u))
    back = {name: -u for name, u in ahead.items()}
    slopes = replay.direction(ahead, step_size(spec)), -replay.direction(back, step_size(spec))
    assert min(abs(size - s) for s in slopes) <= tolerance(spec) * (1 + size), f"{size} is none of {slopes}"


def assert_left_as_by_forward(program: Program, replay: Replay, loss: Tensor, spec: Spec) -> None:
    """The loss is that of one forward, and buffers are where it leaves them."""
    expected, after = replay.query()
    close = 1e-9 if spec.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(float(loss), expected, rtol=close, atol=close)
    torch.testing.assert_close(program.named("buffers"), after.named("buffers"), rtol=close, atol=close)
    torch.testing.assert_close(dict(program.named("parameters")), replay.history[-1], rtol=0, atol=0)


def train(spec: Spec, kind: Any, **options: Any) -> None:
    """Three steps of a script that changes everything it can between them."""
    program, replay = Program(spec), Replay(spec)
    if kind is dz.CGE:
        options["sparsity"] = Chosen(program)
    else:
        options |= {"queries": 1, "distribution": "rademacher"}
    zo = program.estimator(kind, step_size=step_size(spec), **options)
    for step in range(STEPS):
        if step:
            program.change()
        replay.begin(program)
        for parameter in program.named("parameters").values():
            parameter.grad = None
        generators = torch.get_rng_state()
        loss = zo.backward(*program.batch(step))
        assert torch.equal(torch.get_rng_state(), generators)
        found = {name: p.grad for name, p in program.trainable().items()}
        if kind is dz.CGE:
            assert_coordinates(found, replay, chosen(program, step), spec)
        else:
            assert_direction(found, replay, spec)
        assert_left_as_by_forward(program, replay, loss, spec)
        with torch.no_grad():
            for name, parameter in program.trainable().items():
                parameter.sub_(MOVED * found[name].clamp(-1, 1))


@pytest.fixture(autouse=True)
def slow_ways_may_warn() -> Any:
    """Pieces that cannot be propagated take a slower way, and a warning says so; whether it does is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?is).*forward")
        yield


def specs_of_each_kind() -> list[Spec]:
    return [*(Spec((piece,)) for piece in PIECES), *(Spec(("Convolution",), target) for target in TARGETS)]


each_kind = pytest.mark.parametrize(
    "spec", specs_of_each_kind(), ids=lambda spec: "-".join((*spec.pieces, spec.target))
)


@each_kind
def test_every_parameter_has_a_slope(spec: Spec) -> None:
    """So that the tests below test something."""
    program, replay = Program(spec), Replay(spec)
    replay.begin(program)
    for name, parameter in program.trainable().items():
        slopes = [replay.coordinate(name, index, 1e-4) for index in range(min(6, parameter.numel()))]
        assert max(map(abs, slopes)) > 1e-4, name


@each_kind
@pytest.mark.parametrize("kind", [dz.CGE, dz.RGE], ids=["CGE", "RGE"])
def test_each_kind(spec: Spec, kind: Any) -> None:
    """The default evaluator refuses nothing."""
    train(spec, kind)


def mixtures(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many programs; a failing one is small enough as it is, and is not shrunk, which would take minutes."""
    return settings(
        max_examples=count,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@mixtures(8)
@given(spec=PROGRAMS)
@example(spec=Spec(("DropoutElsewhere", "BatchNorm"), "penalized", layout="channels_last"))
@example(
    spec=Spec(("ExpandedInput", "Temperature", "WrittenCounter"), "scheduled", torch.float32, "expanded", resized=True)
)
def test_mixtures_by_coordinates(spec: Spec) -> None:
    train(spec, dz.CGE)


@mixtures(15)
@given(spec=PROGRAMS)
def test_mixtures_by_random_directions(spec: Spec) -> None:
    train(spec, dz.RGE)


@mixtures(10)
@given(spec=PROGRAMS, kind=st.sampled_from([dz.CGE, dz.RGE]))
@example(spec=Spec(("DataBranch",)), kind=dz.CGE)
@example(spec=Spec(("Item",)), kind=dz.CGE)
@example(spec=Spec(("NumPyInside",)), kind=dz.RGE)
@example(spec=Spec(("Convolution",), "margin"), kind=dz.RGE)
def test_a_fast_evaluator_is_right_or_says_truly_why_not(spec: Spec, kind: Any) -> None:
    fast = dz.PropagationEvaluator() if kind is dz.CGE else dz.BatchedEvaluator()
    try:
        train(spec, kind, evaluator=fast)
    except dz.DeepZeroError as refusal:
        assert_true(str(refusal), spec, kind)


CLAIMS = {
    r"control flow": lambda spec: BRANCHING.intersection(spec.pieces) or spec.target == "margin",
    r"random": lambda spec: RANDOM.intersection(spec.pieces),
    r"Python number|\.item\(": lambda spec: {"Item", "DataBranch"}.intersection(spec.pieces) or spec.target == "number",
    r"cannot be (exported|captured|traced)": lambda spec: (
        UNTRACEABLE.intersection(spec.pieces) or spec.target in ("margin", "number")
    ),
    r"deterministic|report it|rule is wrong": lambda spec: False,
    r"not finite|nan|infinite": lambda spec: False,
}
"""What a message may say -> of which programs it is true."""


def assert_true(message: str, spec: Spec, kind: Any) -> None:
    """Nothing untrue is claimed, and the evaluator that is advised works."""
    untrue = [claim for claim, holds in CLAIMS.items() if re.search(claim, message) and not holds(spec)]
    assert not untrue, f"{spec} is refused for {untrue}: {message}"
    advised = re.findall(r"evaluator=dz\.(\w+)\(", message)
    assert advised, f"nothing is advised for {spec}: {message}"
    train(spec, kind, evaluator=getattr(dz, advised[0])())
