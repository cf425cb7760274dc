"""The wake flow: one step against an independent one, projection, blow-ups, backends, gradients."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("phi", reason="PhiFlow is not installed: pip install 'deepzero[physics]'")

import deepzero as dz
from deepzero.errors import InvalidInputError
from deepzero.models import FlowCorrector
from deepzero.tasks.correction.reference_flows import shedding
from deepzero.tasks.correction.wake import WIDTH, Flows, WakeFlow, divergence, downsampled, vorticity

CELLS = 16
SIZE = WIDTH / CELLS
REYNOLDS = (146.5, 585.9)


@pytest.fixture(scope="module")
def flow() -> WakeFlow:
    return WakeFlow(CELLS)


@pytest.fixture(scope="module")
def developed(flow: WakeFlow) -> Flows:
    """After some steps, with something across the stream."""
    state = flow.initial(REYNOLDS)
    velocity = state.velocity
    for _ in range(10):
        velocity = flow.step(velocity, state.reynolds)
    return Flows(velocity, state.reynolds)


# An independent step, in NumPy and float64 ---------------------------------------------------------------------------


def before_projection(velocity: Tensor, reynolds: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Diffusion, the velocity at inlet and walls, and advection, written with loops over nothing but faces."""
    v_x = velocity[0, :, :-1].double().numpy()
    v_y = velocity[1, :-1, :].double().numpy()
    viscosity = 1e5 / (16384 * reynolds)
    v_x, v_y = (diffused(one, viscosity) for one in (v_x, v_y))
    v_y[:, :2] = v_y[0] = v_y[-1] = 1.0
    return advected(v_x, v_x, v_y, (0.0, 0.5)), advected(v_y, v_x, v_y, (0.5, 0.0))


def diffused(field: np.ndarray[Any, Any], viscosity: float) -> np.ndarray[Any, Any]:
    padded = np.pad(field, 1, mode="edge")
    around = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    return field + viscosity * (around - 4 * field) / SIZE**2


def advected(field: Any, v_x: Any, v_y: Any, origin: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Values where a backward step of length 1 along the velocity leads; positions in units of cells."""
    i, j = np.meshgrid(*(np.arange(n) + o for n, o in zip(field.shape, origin, strict=True)), indexing="ij")
    back = i - at(v_x, i, j, (0.0, 0.5)) / SIZE, j - at(v_y, i, j, (0.5, 0.0)) / SIZE
    return at(field, *back, origin)


def at(field: Any, i: Any, j: Any, origin: tuple[float, float]) -> np.ndarray[Any, Any]:
    """Bilinear interpolation, constant beyond the first and the last face."""
    i = np.clip(i - origin[0], 0, field.shape[0] - 1)
    j = np.clip(j - origin[1], 0, field.shape[1] - 1)
    a, b = np.minimum(i.astype(int), field.shape[0] - 2), np.minimum(j.astype(int), field.shape[1] - 2)
    s, t = i - a, j - b
    near, far = (field[a + k, b] * (1 - t) + field[a + k, b + 1] * t for k in (0, 1))
    return near * (1 - s) + far * s


def far_from_cylinder(shape: tuple[int, int], origin: tuple[float, float]) -> np.ndarray[Any, Any]:
    i, j = np.meshgrid(*(np.arange(n) + o for n, o in zip(shape, origin, strict=True)), indexing="ij")
    return np.hypot(i * SIZE - 50, j * SIZE - 50) > 10 + 3 * SIZE


def test_a_step_is_an_independent_one_up_to_the_gradient_of_a_pressure(flow: WakeFlow, developed: Flows) -> None:
    """Helmholtz: what differs from the independent step before the projection is free of curl, what is left of divergence."""
    after = flow.step(*developed)
    for k, reynolds in enumerate(REYNOLDS):
        v_x, v_y = before_projection(developed.velocity[k], reynolds)
        change_x = after[k, 0, :, :-1].double().numpy() - v_x
        change_y = after[k, 1, :-1, :].double().numpy() - v_y
        curl = np.diff(change_y[:, 1:-1], axis=0) - np.diff(change_x[1:-1], axis=1)
        away = far_from_cylinder(curl.shape, (1.0, 1.0))
        moved = max(abs(change_x).max(), abs(change_y).max())
        assert moved > 1e-3  # the projection does something
        assert abs(curl[away]).max() < 2e-5
        free = far_from_cylinder((CELLS, 2 * CELLS), (0.5, 0.5))
        assert abs(divergence(after, CELLS)[k].numpy()[free]).max() < 1e-5
    before = np.stack([before_projection(developed.velocity[0], REYNOLDS[0])[1]])
    assert abs(np.diff(before, axis=2)).max() > 1e-2  # the flow is not uniform, so the test can fail


def test_energy_is_bounded_and_the_cylinder_is_at_rest(flow: WakeFlow) -> None:
    state = flow.initial(REYNOLDS)
    velocity, energies = state.velocity, []
    for _ in range(60):
        velocity = flow.step(velocity, state.reynolds)
        energies.append(float(velocity.square().sum()))
    assert max(energies[5:]) < 1.2 * energies[5]
    inside = velocity[:, :, 7:9, 7:9]
    assert float(inside.abs().max()) < 0.2 < float(velocity.abs().max())


def test_rows_do_not_depend_on_each_other(flow: WakeFlow, developed: Flows) -> None:
    both = flow.step(*developed)
    alone = flow.step(developed.velocity[:1], developed.reynolds[:1])
    assert torch.allclose(both[:1], alone, atol=1e-5)
    many = flow.step(developed.velocity.repeat(40, 1, 1, 1), developed.reynolds.repeat(40, 1))  # two calls
    assert many.shape[0] == 80
    assert torch.allclose(many[78:], both, atol=1e-5)


def test_a_flow_that_blew_up_is_nan_and_the_others_are_not(flow: WakeFlow, developed: Flows) -> None:
    bad = developed.velocity.clone()
    bad[1, 0, 3, 3] = torch.nan
    found = flow.step(bad, developed.reynolds)
    assert bool(found[1].isnan().all())
    assert torch.allclose(found[0], flow.step(*developed)[0], atol=1e-5)
    bad[1, 0, 3, 3] = 1e6
    assert bool(flow.step(bad, developed.reynolds)[1].isnan().all())
    assert bool(flow.step(bad[1:], developed.reynolds[1:]).isnan().all())


def test_backends_agree_and_a_flow_can_be_pickled(flow: WakeFlow, developed: Flows) -> None:
    plain = pickle.loads(pickle.dumps(WakeFlow(CELLS, backend="numpy")))
    found = plain.step(developed.velocity.numpy(), developed.reynolds.numpy())
    assert isinstance(found, np.ndarray)
    assert torch.allclose(torch.from_numpy(found), flow.step(*developed), atol=1e-5)
    again = pickle.loads(pickle.dumps(flow)).step(*developed)
    assert torch.equal(again, flow.step(*developed))


def test_autograd_goes_through_the_compiled_step(flow: WakeFlow, developed: Flows) -> None:
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(developed.velocity.shape, generator=generator) * flow.faces
    weight = torch.randn(developed.velocity.shape, generator=generator)
    velocity = developed.velocity.clone().requires_grad_()
    (slope,) = torch.autograd.grad((flow.step(velocity, developed.reynolds) * weight).sum(), velocity)
    moved = [flow.step(developed.velocity + t * along, developed.reynolds) for t in (1e-3, -1e-3)]
    expected = float(((moved[0] - moved[1]).double() * weight).sum()) / 2e-3
    assert float((slope * along).sum()) == pytest.approx(expected, rel=2e-2)


def test_no_gradient_flows_through_the_black_box(developed: Flows) -> None:
    """The solver on NumPy cannot be differentiated; what is estimated from its answers is what the other solver gives."""
    torch.manual_seed(0)
    network = FlowCorrector(widths=(2,), scales=(0.2, 0.3, 500.0))
    gradients = {}
    for backend in ("numpy", "torch"):
        corrected = dz.Corrected(WakeFlow(CELLS, backend=backend), network, steps=2, queries=2, stencil="forward")
        network.zero_grad()
        corrected(developed).square().mean().backward()
        assert corrected.solver is not None
        assert (
            corrected.solver.queries == 2 * 2 + 2 * 2 + 2
        )  # two steps, two directions in the second, two to see whether rows are independent
        gradients[backend] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert torch.allclose(
        gradients["numpy"], gradients["torch"], rtol=1e-2, atol=1e-4 * float(gradients["torch"].abs().max())
    )


def test_downsampling_keeps_the_flux_and_a_divergence_of_zero() -> None:
    stream = torch.randn(1, 2 * CELLS + 1, 4 * CELLS + 1, generator=torch.Generator().manual_seed(0)).double()
    velocity = torch.zeros(1, 2, 2 * CELLS + 1, 4 * CELLS + 1, dtype=torch.float64)
    velocity[:, 0, :, :-1], velocity[:, 1, :-1, :] = stream.diff(dim=2), -stream.diff(dim=1)
    assert float(divergence(velocity, 2 * CELLS).abs().max()) < 1e-12
    coarse = downsampled(velocity)
    assert coarse.shape == (1, 2, CELLS + 1, 2 * CELLS + 1)
    assert float(divergence(coarse, CELLS).abs().max()) < 1e-12
    assert torch.allclose(coarse[:, 0, -1, :-1].mean(), velocity[:, 0, -1, :-1].mean())


def test_vorticity_of_a_rigid_rotation_is_twice_its_speed() -> None:
    velocity = torch.zeros(1, 2, CELLS + 1, 2 * CELLS + 1)
    velocity[:, 0, :, :-1] = -0.1 * (torch.arange(2 * CELLS) + 0.5) * SIZE
    velocity[:, 1, :-1, :] = 0.1 * ((torch.arange(CELLS) + 0.5) * SIZE).unsqueeze(1)
    assert torch.allclose(vorticity(velocity, CELLS), torch.tensor(0.2))


def test_the_strongest_frequency_of_a_signal() -> None:
    times = torch.arange(600).double()
    assert shedding(2 + torch.sin(0.0081 * 2 * torch.pi * times)) == pytest.approx(0.0081, abs=2e-4)


def test_wrong_shapes_and_values_say_what_is_expected(flow: WakeFlow) -> None:
    with pytest.raises(
        InvalidInputError, match=r"takes velocities \[n, 2, 17, 33\] and Reynolds numbers \[n, 1\], got"
    ):
        flow.step(torch.zeros(1, 2, 16, 33), torch.ones(1, 1))
    with pytest.raises(InvalidInputError, match="resolution"):
        WakeFlow(4)
    with pytest.raises(InvalidInputError, match="backend"):
        WakeFlow(16, backend="jax")
