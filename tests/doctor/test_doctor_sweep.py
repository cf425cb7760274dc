import math

import numpy as np
import pytest
import torch
from patients import CUBE_SLOPE, LOSS, batch, cube, healthy

import deepzero as dz
from deepzero.doctor.records import Curve, Point, Sweep
from deepzero.doctor.reference import exact_gradients
from deepzero.doctor.sampling import exact_slopes, sample
from deepzero.doctor.sweep import STEPS, choose_step, run_sweep, with_step
from deepzero.objective import parameters_of


def sweep(zo, arguments, *, exact=None, steps=STEPS, evaluators=None):
    perturbations = zo.directions(*arguments)
    evaluators = evaluators or {"sequential": dz.SequentialEvaluator()}
    estimators = {name: zo.copy(evaluator=evaluator) for name, evaluator in evaluators.items()}
    return run_sweep(estimators, arguments, perturbations, steps=steps, exact=exact)[0]


def made(errors, steps=STEPS):
    points = tuple(Point(step, error, 0.0) for step, error in zip(steps, errors, strict=True))
    return Sweep("float64 autograd", 0.0, 1, (Curve("propagation", "forward", points),), {})


def test_errors_have_the_order_of_the_stencil():
    found = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)), steps=[1e-3, 1e-2])
    for stencil in (dz.FORWARD, dz.CENTRAL):
        near, far = (point.error for point in found.curve("sequential", stencil.name).points)
        assert math.log10(far / near) == pytest.approx(stencil.order, abs=0.01)


def test_errors_are_those_of_the_cube():
    found = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)), steps=[1e-2, 1e-1])
    h = 0.1
    forward = math.hypot(3 * 1 * h + h**2, 3 * 2 * h + h**2) / math.hypot(*CUBE_SLOPE)
    assert found.curve("sequential", "forward").points[1].error == pytest.approx(forward, rel=1e-9)
    central = math.sqrt(2) * h**2 / math.hypot(*CUBE_SLOPE)
    assert found.curve("sequential", "central").points[1].error == pytest.approx(central, rel=1e-9)


def test_without_exact_slopes_neighbouring_steps_find_them():
    known = sweep(dz.CGE(cube()), (), exact=("known", torch.tensor(CUBE_SLOPE)))
    found = sweep(dz.CGE(cube()), ())
    assert found.reference == "neighbouring steps"
    assert found.uncertainty < 1e-8
    for one, other in zip(known.curves[0].points[4:], found.curves[0].points[4:], strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-2)


def network_sweep(evaluators):
    zo, arguments = dz.CGE(healthy(), loss=LOSS), batch()
    exact = exact_gradients(zo.objective, arguments, seed=0, loss=1.0)
    whole = zo.directions(*arguments)
    return sweep(zo, arguments, exact=("autograd", exact_slopes(whole, exact.gradients)), evaluators=evaluators)


def test_full_forwards_in_float32_have_a_noise_floor_and_propagation_has_none():
    found = network_sweep({"propagation": dz.PropagationEvaluator(), "sequential": dz.SequentialEvaluator()})
    smallest = {c.evaluator: c.points[0].error for c in found.curves if c.stencil == "forward"}
    assert smallest["sequential"] > 1e-1
    assert smallest["propagation"] < 1e-5
    assert 1e-10 < found.noise_floor["sequential"] < 1e-6
    assert found.noise_floor["propagation"] < 1e-3 * found.noise_floor["sequential"]


@pytest.mark.parametrize("stencil", ["forward", "central"])
def test_the_recommended_step_lies_in_the_flat_part_of_full_forwards(stencil):
    found = network_sweep({"sequential": dz.SequentialEvaluator()})
    points = found.curve("sequential", stencil).points
    choice = choose_step(found, "sequential", stencil, 5e-3)
    best = min(p.error for p in points)
    assert points[0].error > 20 * best  # rounding
    assert points[-1].error > 5 * best  # curvature
    assert choice.error <= max(2 * best, 1e-3)
    assert choice.low <= choice.step_size <= choice.high
    assert STEPS[0] < choice.low <= choice.high < STEPS[-1]


def test_the_middle_of_the_flat_part_is_recommended():
    errors = [1.0, 0.3, 0.1, 0.03, 9e-4, 3e-4, 1e-4, 4e-4, 8e-4, 0.01, 0.1, 0.3, 1.0]
    choice = choose_step(made(errors), "propagation", "forward", 1e-1)
    assert (choice.low, choice.step_size, choice.high) == (STEPS[4], STEPS[6], STEPS[8])
    assert choice.error == 1e-4
    assert choice.configured_error == 1.0
    assert f"{STEPS[4]:.1e}" in choice.reason


def test_the_flat_part_is_connected():
    errors = [1e-4, 1e-4, 0.5, 0.5, 1e-5, 1e-4, 1e-4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    choice = choose_step(made(errors), "propagation", "forward", 1e-3)
    assert (choice.low, choice.high) == (STEPS[4], STEPS[6])


def test_no_step_is_recommended_where_all_are_noise():
    assert choose_step(made([0.9] * 13), "propagation", "forward", 1e-3) is None
    assert choose_step(made([None] * 13), "propagation", "forward", 1e-3) is None


def test_steps_whose_losses_overflow_have_no_error():
    def fn(p):
        return float(math.exp(1000 * p["w"][0])) if p["w"][0] < 0.5 else math.inf

    box = dz.BlackBox(fn, {"w": torch.zeros(1, dtype=torch.float64)})
    found = sweep(dz.CGE(box), (), steps=[1e-6, 1e-5, 1e-4, 1.0])
    assert [p.error is None for p in found.curve("sequential", "forward").points] == [False, False, False, True]
    assert choose_step(found, "sequential", "central", 1.0).configured_error is None


def test_zeros_are_counted():
    box = dz.BlackBox(
        lambda p: float(p["w"][0].round(decimals=2) + p["w"][1]), {"w": torch.zeros(2, dtype=torch.float64)}
    )
    found = sweep(dz.CGE(box), (), steps=[1e-4, 1e-1])
    assert [p.zeros for p in found.curve("sequential", "forward").points] == [0.5, 0.0]


def staircase(p):
    return float(np.floor(50 * p["w"]).sum())


def test_a_staircase_is_flat_below_the_width_of_its_steps():
    box = dz.BlackBox(staircase, {"w": np.full(4, 0.005)})
    found = sweep(dz.CGE(box), ())
    assert found.flat_below == pytest.approx(10**-1.5)
    assert choose_step(found, "sequential", "forward", 1e-3) is None


def test_the_configured_step_is_among_the_steps():
    assert with_step([1e-3, 1e-2], 9e-3) == [1e-3, 9e-3]
    assert with_step([1e-3, 1e-2], 1.0) == [1e-3, 1e-2, 1.0]


def test_samples_are_spread_over_the_parameters():
    zo = dz.CGE(healthy(), loss=LOSS)
    whole = zo.directions(*batch())
    few = sample(zo, whole, 12)
    assert {name: len(index) for name, index in few.coordinates.items()} == dict.fromkeys(
        parameters_of(zo.objective), 2
    )
    assert len(sample(zo, whole, 3)) == 3
    assert torch.equal(sample(zo, whole, 12).coordinates["0.weight"], few.coordinates["0.weight"])


def test_slopes_along_random_directions_are_products_with_the_gradient():
    zo = dz.RGE(healthy(), loss=LOSS, queries=5)
    few = sample(zo, zo.directions(*batch()), 3)
    gradients = {name: torch.ones_like(p).double() for name, p in parameters_of(zo.objective).items()}
    expected = [sum(float(part.double().sum()) for part in few.direction(k).values()) for k in range(3)]
    assert exact_slopes(few, gradients).tolist() == pytest.approx(expected)
