import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from patients import CUBE_SLOPE, LOSS, batch, cube, healthy
from torch import Tensor

import deepzero as dz
from deepzero.doctor.direction_samples import slopes_along
from deepzero.doctor.exact_gradients import exact_gradients
from deepzero.doctor.step_choice import choose_step
from deepzero.doctor.sweep import STEPS, Sweep, agreed_slopes, compare_slopes, measure_slopes, with_step
from deepzero.estimator import Estimator


def sweep(
    zo: Estimator,
    arguments: tuple[Tensor, Tensor],
    *,
    exact: tuple[str, Tensor] | None = None,
    steps: Sequence[float] = STEPS,
    evaluators: dict[str, Any] | None = None,
) -> Sweep:
    evaluators = evaluators or {"sequential": dz.SequentialEvaluator()}
    estimators = {name: zo.copy(evaluator=evaluator) for name, evaluator in evaluators.items()}
    return compare_slopes(measure_slopes(estimators, arguments, zo.directions(*arguments), steps), exact)[0]


def test_errors_have_the_order_of_the_stencil() -> None:
    found = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)), steps=[1e-3, 1e-2])
    for stencil in (dz.FORWARD, dz.CENTRAL):
        near, far = (point.error for point in found.curve("sequential", stencil.name).points)
        assert math.log10(far / near) == pytest.approx(stencil.order, abs=0.01)


def test_errors_are_those_of_the_cube() -> None:
    found = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)), steps=[1e-2, 1e-1])
    h = 0.1
    forward = math.hypot(3 * 1 * h + h**2, 3 * 2 * h + h**2) / math.hypot(*CUBE_SLOPE)
    assert found.curve("sequential", "forward").points[1].error == pytest.approx(forward, rel=1e-9)
    central = math.sqrt(2) * h**2 / math.hypot(*CUBE_SLOPE)
    assert found.curve("sequential", "central").points[1].error == pytest.approx(central, rel=1e-9)


def test_without_exact_slopes_neighbouring_steps_find_them() -> None:
    known = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)))
    found = sweep(dz.CGE(cube()), ())
    assert found.reference == "neighbouring steps"
    assert found.uncertainty < 1e-8
    for one, other in zip(known.curves[0].points[4:], found.curves[0].points[4:], strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-2)


def network_sweep(evaluators: dict[str, Any]) -> Sweep:
    zo, arguments = dz.CGE(healthy(), loss=LOSS), batch()
    exact = exact_gradients(zo.objective, arguments, seed=0, loss=1.0)
    whole = zo.directions(*arguments)
    return sweep(zo, arguments, exact=("autograd", slopes_along(whole, exact.gradients)), evaluators=evaluators)


def test_full_forwards_in_float32_have_a_noise_floor_and_propagation_has_none() -> None:
    found = network_sweep({"propagation": dz.PropagationEvaluator(), "sequential": dz.SequentialEvaluator()})
    smallest = {c.evaluator: c.points[0].error for c in found.curves if c.stencil == "forward"}
    assert smallest["sequential"] > 1e-1
    assert smallest["propagation"] < 1e-5
    assert 1e-10 < found.noise_floor["sequential"] < 1e-6
    assert found.noise_floor["propagation"] < 1e-3 * found.noise_floor["sequential"]


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_the_recommended_step_lies_in_the_flat_part_of_full_forwards(stencil: str) -> None:
    found = network_sweep({"sequential": dz.SequentialEvaluator()})
    points = found.curve("sequential", stencil).points
    choice = choose_step(found, "sequential", stencil, 5e-3)
    best = min(p.error for p in points)
    assert points[0].error > 20 * best  # rounding
    assert points[-1].error > 5 * best  # curvature
    assert choice.error <= max(2 * best, 1e-3)
    assert choice.low <= choice.step_size <= choice.high
    assert STEPS[0] < choice.low <= choice.high < STEPS[-1]


def test_steps_whose_losses_overflow_have_no_error() -> None:
    def fn(p: dict[str, Tensor]) -> float:
        return float(math.exp(1000 * p["w"][0])) if p["w"][0] < 0.5 else math.inf

    box = dz.BlackBox(fn, {"w": torch.zeros(1, dtype=torch.float64)})
    found = sweep(dz.CGE(box), (), steps=[1e-6, 1e-5, 1e-4, 1.0])
    assert [p.error is None for p in found.curve("sequential", "forward").points] == [False, False, False, True]
    assert choose_step(found, "sequential", "central", 1.0).configured_error is None


def test_zeros_are_counted() -> None:
    box = dz.BlackBox(
        lambda p: float(p["w"][0].round(decimals=2) + p["w"][1]), {"w": torch.zeros(2, dtype=torch.float64)}
    )
    found = sweep(dz.CGE(box), (), steps=[1e-4, 1e-1])
    assert [p.zeros for p in found.curve("sequential", "forward").points] == [0.5, 0.0]


def staircase(p: dict[str, np.ndarray[Any, Any]]) -> float:
    return float(np.floor(50 * p["w"]).sum())


def test_a_staircase_is_flat_below_the_width_of_its_steps() -> None:
    box = dz.BlackBox(staircase, {"w": np.full(4, 0.005)})
    found = sweep(dz.CGE(box), ())
    assert found.flat_below == pytest.approx(10**-1.5)
    assert choose_step(found, "sequential", "forward", 1e-3) is None


def test_the_configured_step_is_among_the_steps() -> None:
    assert with_step([1e-3, 1e-2], 9e-3) == [1e-3, 9e-3]
    assert with_step([1e-3, 1e-2], 1.0) == [1e-3, 1e-2, 1.0]


def test_neighbouring_steps_agree_on_the_true_slope() -> None:
    steps = [10.0**k for k in range(-6, 0)]
    noise = torch.tensor([1e-12, -1e-12], dtype=torch.float64)
    slopes = torch.stack([torch.tensor([2.0, -1.0], dtype=torch.float64) + 3 * h**2 + noise / h for h in steps])
    found, uncertainty = agreed_slopes(slopes, steps)
    assert found.tolist() == pytest.approx([2.0, -1.0], abs=2e-7)
    assert 0 < uncertainty < 1e-6


def test_steps_too_small_to_see_anything_are_no_agreement() -> None:
    slopes = torch.tensor([[0.0], [0.0], [2.1], [2.4]], dtype=torch.float64)
    found, _ = agreed_slopes(slopes, [1e-4, 1e-3, 1e-2, 1e-1])
    assert float(found) == pytest.approx(2.1, abs=0.01)


def test_where_nothing_is_ever_seen_there_is_no_certainty() -> None:
    found, uncertainty = agreed_slopes(torch.zeros(3, 2, dtype=torch.float64), [1e-3, 1e-2, 1e-1])
    assert not found.any()
    assert uncertainty == float("inf")
