"""The unsteady wake flow behind a cylinder, by PhiFlow: a simulator for any number of flows side by side.

Set-up of Um et al., "Solver-in-the-Loop" (NeurIPS 2020), as restated by Chen et al. (ICLR 2024, appendix H): a domain
of 100 by 200 units with open boundaries, a cylinder of radius 10 at (50, 50), inflow of speed 1 along y, a step of 1,
all in single precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.extras import required_for

TRAINING_REYNOLDS = (97.7, 195.3, 390.6, 781.3, 1562.5, 3125.0)
TEST_REYNOLDS = (146.5, 293.0, 585.9, 1171.9, 2343.8)
"""Reynolds numbers of the paper, all rounded to a decimal as there."""
WIDTH, LENGTH, RADIUS, STEP = 100.0, 200.0, 10.0, 1.0
AT_ONCE = 64
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, AT_ONCE)
"""Flows of one compiled call: more are cut, others are filled up to the next size, so that few programs are made."""
BLOWN_UP = 1e3
"""A velocity of this many times the inflow's is beyond all sense: the flow is given up."""
TORCH, NUMPY = "torch", "numpy"


class Flows(NamedTuple):
    """States of n flows.

    Attributes:
        velocity: on the faces of a staggered grid: ``[n, 2, X+1, Y+1]`` with v_x at ``[:, 0, :, :Y]`` and v_y at
            ``[:, 1, :X, :]``; the remaining entries are 0 and mean nothing.
        reynolds: ``[n, 1]``, as the paper counts: :math:`10^5 / (16384\\,\\nu)`.
    """

    velocity: Float[Tensor, "n 2 x1 y1"]
    reynolds: Float[Tensor, "n 1"]


class WakeFlow:
    """One step of the wake flow on a staggered grid, of PhiFlow's operations.

    Explicit diffusion with :math:`\\nu = 10^5 / (16384\\,Re)`, velocity 1 along y at the inlet and at the walls,
    semi-Lagrangian advection (Euler), and a pressure projection by conjugate gradients. A row whose values are not
    finite, or beyond :data:`BLOWN_UP`, has blown up: its answer is NaN, and the others are what they would have been.

    PhiFlow's compiled step is many times slower on several threads than on one, so a step runs on one.

    Args:
        resolution: cells across, X; there are twice as many along, Y = 2 X.
        backend: ``"torch"`` (compiled; can be differentiated) or ``"numpy"`` (cannot; slow).
        tolerance: of the residual of the pressure solve.

    Raises:
        InvalidInputError: PhiFlow is not installed, or an argument is out of its domain.

    Example::

        flow = WakeFlow(32)
        velocity, reynolds = flow.initial([390.6, 781.3])
        velocity = flow.step(velocity, reynolds)  # [2, 2, 33, 65]
    """

    reads_only = True

    def __init__(self, resolution: int, *, backend: str = TORCH, tolerance: float = 1e-5) -> None:
        self.resolution = validation.count("resolution", resolution, minimum=8)
        self.backend = validation.choice("backend", backend, (TORCH, NUMPY))
        self.tolerance = validation.positive("tolerance", tolerance, hint="1e-5")
        require_phiflow()

    @property
    def numpy(self) -> bool:
        """True if a step takes NumPy arrays."""
        return self.backend == NUMPY

    # As a simulator ---------------------------------------------------------------------------------------------------

    def arrays(self, state: Flows | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Velocities and Reynolds numbers."""
        return state[0], state[1]

    def step(self, values: Any, reynolds: Any) -> Any:
        """Velocities one step later, ``[n, 2, X+1, Y+1]`` float32."""
        if self.numpy:
            return self._guarded(torch.from_numpy(values), torch.from_numpy(reynolds)).numpy()
        if values.requires_grad and torch.is_grad_enabled():
            advanced: Tensor = _Differentiated.apply(self, values, reynolds)  # type: ignore[no-untyped-call]
            return advanced
        with torch.no_grad():
            return self._guarded(values, reynolds)

    # Fields -----------------------------------------------------------------------------------------------------------

    def initial(self, reynolds: Sequence[float]) -> Flows:
        """Flow along y everywhere, and a patch of flow across it, which sets off the vortices."""
        cells, count = self.resolution, len(reynolds)
        velocity = torch.zeros(count, 2, cells + 1, 2 * cells + 1)
        velocity[:, 1, :cells, :] = 1
        middle = (cells + 1) // 2
        velocity[:, 0, middle - 2 : middle + 2, cells + 10 : cells + 20] = 1
        velocity[:, 0, :, -1] = 0
        return Flows(velocity, torch.tensor(list(reynolds), dtype=torch.float32).unsqueeze(1))

    @cached_property
    def faces(self) -> Float[Tensor, "2 x1 y1"]:
        """1 where an entry is a face of the grid, else 0."""
        found = torch.ones(2, self.resolution + 1, 2 * self.resolution + 1)
        found[0, :, -1] = found[1, -1, :] = 0
        return found

    # The step ---------------------------------------------------------------------------------------------------------

    def _guarded(self, values: Tensor, reynolds: Tensor) -> Tensor:
        """A step of the rows that have not blown up; NaN for the others."""
        self._require_shapes(values, reynolds)
        sound = (values.abs().flatten(1).amax(1) < BLOWN_UP) & reynolds.isfinite().all(1)
        if bool(sound.all()):
            return self._in_parts(values, reynolds)
        found = torch.full_like(values, torch.nan, dtype=torch.float32)
        if bool(sound.any()):
            found[sound] = self._in_parts(values[sound], reynolds[sound])
        return found

    def _in_parts(self, values: Tensor, reynolds: Tensor) -> Tensor:
        with _one_thread():
            parts = [
                self._filled_up(values[start : start + AT_ONCE].float(), reynolds[start : start + AT_ONCE].float())
                for start in range(0, len(values), AT_ONCE)
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _filled_up(self, values: Tensor, reynolds: Tensor) -> Tensor:
        count = len(values)
        size = next(size for size in SIZES if size >= count)
        if size > count:
            more = [size - count] + [-1] * (values.dim() - 1)
            values = torch.cat([values, values[:1].expand(more)])
            reynolds = torch.cat([reynolds, reynolds[:1].expand(size - count, -1)])
        advanced: Tensor = self._program(values, reynolds)
        return advanced[:count]

    def _require_shapes(self, values: Tensor, reynolds: Tensor) -> None:
        expected = (2, self.resolution + 1, 2 * self.resolution + 1)
        if tuple(values.shape[1:]) != expected or tuple(reynolds.shape) != (len(values), 1):
            raise InvalidInputError(
                f"a wake flow on {self.resolution} cells takes velocities [n, {', '.join(map(str, expected))}] and "
                f"Reynolds numbers [n, 1], got {tuple(values.shape)} and {tuple(reynolds.shape)}"
            )

    def _program(self, values: Tensor, reynolds: Tensor) -> Tensor:
        """Velocities and Reynolds numbers to velocities."""
        with _quietly():
            return _program(self.resolution, self.numpy, self.tolerance)(values, reynolds)


@cache
def _program(resolution: int, numpy: bool, tolerance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The step, of PhiFlow's operations; compiled for each number of flows when it is first needed."""
    import phi.math as pm  # noqa: PLC0415 - optional
    from phi.field import StaggeredGrid  # noqa: PLC0415
    from phi.geom import Box, Sphere  # noqa: PLC0415
    from phi.physics import advect, diffuse, fluid  # noqa: PLC0415
    from phiml.backend import NUMPY as numpy_backend  # noqa: PLC0415, N811
    from phiml.math import Diverged, NotConverged, Solve, batch, dual, extrapolation, spatial, stack  # noqa: PLC0415

    cells, along = resolution, 2 * resolution
    bounds = Box(x=WIDTH, y=LENGTH)
    cylinder = fluid.Obstacle(Sphere(x=WIDTH / 2, y=WIDTH / 2, radius=RADIUS))
    solve = Solve("CG", rel_tol=0, abs_tol=tolerance, max_iterations=1000, suppress=[Diverged, NotConverged])
    free = np.ones((cells, along + 1), np.float32)
    free[:, :2] = free[0] = free[-1] = 0

    def grid(v_x: Any, v_y: Any) -> Any:
        faces = stack([v_x, v_y], dual(vector="x,y"))
        return StaggeredGrid(faces, extrapolation.ZERO_GRADIENT, bounds=bounds, x=cells, y=along)

    def components(velocity: Any) -> tuple[Any, Any]:
        return velocity.values[{"~vector": "x"}], velocity.values[{"~vector": "y"}]

    def step(v_x: Any, v_y: Any, viscosity: Any) -> tuple[Any, Any]:
        v_x, v_y = components(diffuse.explicit(grid(v_x, v_y), viscosity, STEP))
        mask = pm.wrap(free, spatial("x,y"))
        velocity = grid(v_x, v_y * mask + (1 - mask))
        velocity = advect.semi_lagrangian(velocity, velocity, STEP)
        velocity, _ = fluid.make_incompressible(velocity, cylinder, solve)
        return components(velocity)

    backend, compiled = numpy_backend, step
    if not numpy:
        from phiml.backend.torch import TORCH as torch_backend  # noqa: PLC0415, N811

        backend, compiled = torch_backend, pm.jit_compile(step)

    def program(values: Tensor, reynolds: Tensor) -> Tensor:
        viscosity = 1e5 / (16384 * reynolds[:, 0])
        fields = ((values[:, 0, :, :-1], "x,y"), (values[:, 1, :-1, :], "x,y"), (viscosity, ""))
        with backend:
            wrapped = [
                pm.wrap(value.numpy() if numpy else value, batch("flow"), *([spatial(names)] if names else []))
                for value, names in fields
            ]
            v_x, v_y = (torch.as_tensor(one.native("flow,x,y")) for one in compiled(*wrapped))
        return torch.stack([F.pad(v_x, (0, 1)), F.pad(v_y, (0, 0, 0, 1))], dim=1)

    return program


class _Differentiated(torch.autograd.Function):
    """A step through which autograd goes; PhiFlow differentiates its pressure solve only where it knows the backend."""

    @staticmethod
    def forward(ctx: Any, flow: WakeFlow, values: Tensor, reynolds: Tensor) -> Tensor:
        """One step, with its history."""
        with torch.enable_grad():
            ctx.values = values.detach().requires_grad_()
            ctx.advanced = flow._guarded(ctx.values, reynolds.detach())
        advanced: Tensor = ctx.advanced.detach()
        return advanced

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor, None]:
        """The vector-Jacobian product."""
        from phiml.backend.torch import TORCH as torch_backend  # noqa: PLC0415, N811

        with _one_thread(), torch_backend, _quietly():
            [found] = torch.autograd.grad(ctx.advanced, ctx.values, cotangent)
        return None, found, None


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings that are PhiFlow's matter: deprecated imports, sparse tensors in beta, constants in traces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_phiflow() -> None:
    """Raise unless PhiFlow can be imported."""
    with required_for("the wake flow"), _quietly():
        import phi.physics.fluid  # noqa: PLC0415 - optional
    del phi


def downsampled(velocity: Float[Tensor, "n 2 x1 y1"]) -> Float[Tensor, "n 2 x2 y2"]:
    """A staggered field on half as many cells: every second face along its own axis, means of pairs along the other.

    Example:
        >>> velocity = torch.ones(1, 2, 9, 17)
        >>> downsampled(velocity).shape
        torch.Size([1, 2, 5, 9])
    """
    v_x, v_y = velocity[:, 0, ::2, :-1], velocity[:, 1, :-1, ::2]
    v_x = (v_x[:, :, ::2] + v_x[:, :, 1::2]) / 2
    v_y = (v_y[:, ::2] + v_y[:, 1::2]) / 2
    return torch.stack([F.pad(v_x, (0, 1)), F.pad(v_y, (0, 0, 0, 1))], dim=1)


def vorticity(velocity: Float[Tensor, "n 2 x1 y1"], resolution: int) -> Float[Tensor, "n x y"]:
    """:math:`\\partial v_y / \\partial x - \\partial v_x / \\partial y` at the inner nodes, in units of 1/time."""
    size = WIDTH / resolution
    v_x, v_y = velocity[:, 0, 1:-1, :-1], velocity[:, 1, :-1, 1:-1]
    return (v_y.diff(dim=1) - v_x.diff(dim=2)) / size


def divergence(velocity: Float[Tensor, "n 2 x1 y1"], resolution: int) -> Float[Tensor, "n x y"]:
    """:math:`\\partial v_x / \\partial x + \\partial v_y / \\partial y` in every cell, in units of 1/time."""
    size = WIDTH / resolution
    return (velocity[:, 0, :, :-1].diff(dim=1) + velocity[:, 1, :-1, :].diff(dim=2)) / size
