"""The loss around some weights, on a plane: along the estimated gradient, and along a random direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.objective import Objective, parameters_of, steady
from deepzero.randomness import derive_seed

RELATIVE_RADIUS = 0.1
"""Of the default plane: a tenth of the norm of the weights."""

Direction = Mapping[str, Tensor]


@dataclass(frozen=True)
class LossSurface:
    """Losses on a square grid around some weights; all distances are Euclidean, in the space of all weights.

    Attributes:
        distances: from the weights, along either direction: rising, symmetric about 0.
        losses: ``losses[j][i]`` is at ``distances[i]`` along the gradient and ``distances[j]`` along the random
            direction; NaN or infinity where the loss is.
        gradient_norm: norm of the gradient: the slope that it promises at the weights.
        slope: the slope along it that the grid has there, by a central difference between the neighbours.
        weight_norm: norm of the weights.
    """

    distances: list[float]
    losses: list[list[float]]
    gradient_norm: float
    slope: float
    weight_norm: float


def loss_surface(
    objective: Objective,
    batch: tuple[object, ...],
    gradient: Direction,
    *,
    radius: float | None = None,
    points: int = 21,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> LossSurface:
    """The loss on a plane through the present parameters, from function values alone.

    .. math:: f\\Bigl(\\theta + a\\,\\frac{g}{\\lVert g\\rVert} + b\\,d\\Bigr), \\qquad
        d \\perp g,\\; \\lVert d\\rVert = 1, \\qquad a, b \\in [-r, r]

    Both directions have length 1, so that a place in the plane is a distance between weights, the same along both axes.
    Directions are *not* rescaled filter by filter, as Li et al., 2018 (arXiv:1712.09913) do to compare networks with
    each other: such a plane would not hold the gradient. All queries see the same batch and the same random numbers.

    Args:
        objective: at the parameters to look around; it is left as it was.
        batch: its arguments.
        gradient: :math:`g`, an estimate for example, by parameter name; a missing name stands for zeros.
        radius: :math:`r`; by default a tenth of the norm of the weights.
        points: of the grid along each axis, an odd number; it takes ``points ** 2`` queries.
        seed: of the random direction, and of whatever the objective draws.
        tell: called with the number of queries done, and of all.

    Raises:
        InvalidInputError: an argument is out of its domain, or the gradient is zero or not finite.

    Example:
        >>> from deepzero.objective import NetworkObjective
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> bowl = NetworkObjective(model, closure=lambda model: model.weight.square().sum())
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[3.0, 0.0]]))
        >>> surface = loss_surface(bowl, (), {"weight": torch.tensor([[6.0, 0.0]])}, radius=1.0, points=3)
        >>> [[round(loss, 4) for loss in row] for row in surface.losses]
        [[5.0, 10.0, 17.0], [4.0, 9.0, 16.0], [5.0, 10.0, 17.0]]
    """
    validation.count("points", points, minimum=3)
    if points % 2 == 0:
        raise InvalidInputError(f"points must be odd, so that the weights are on the grid, got {points}")
    start = {name: value.detach().clone() for name, value in parameters_of(objective).items()}
    weight_norm, gradient_norm = _norm(start), _norm(gradient)
    if not math.isfinite(gradient_norm) or gradient_norm == 0:
        raise InvalidInputError(f"the gradient must be finite and not zero, but its norm is {gradient_norm:g}")
    radius = validation.positive(
        "radius", (RELATIVE_RADIUS * weight_norm or 1.0) if radius is None else radius, hint="1"
    )
    along = {name: _like(gradient.get(name), value).div(gradient_norm) for name, value in start.items()}
    across = _orthonormal(along, seed)
    distances = [radius * (2 * k - points + 1) / (points - 1) for k in range(points)]
    losses: list[list[float]] = []
    with torch.no_grad(), steady(objective):
        for b in distances:
            losses.append([])
            for a in distances:
                moved = {n: value + (a * along[n] + b * across[n]).to(value.dtype) for n, value in start.items()}
                losses[-1].append(float(objective.evaluate(moved, batch, seed=derive_seed(seed, "surface")).loss))
                tell((len(losses) - 1) * points + len(losses[-1]), points**2)
    middle = points // 2
    slope = (losses[middle][middle + 1] - losses[middle][middle - 1]) / (2 * distances[middle + 1])
    return LossSurface(distances, losses, gradient_norm, slope, weight_norm)


def _norm(direction: Direction) -> float:
    return math.sqrt(sum(float(value.detach().double().square().sum()) for value in direction.values()))


def _like(part: Tensor | None, value: Tensor) -> Tensor:
    """In float64 on the device of ``value``."""
    return torch.zeros_like(value, dtype=torch.float64) if part is None else part.detach().to(value.device).double()


def _orthonormal(along: Direction, seed: int) -> dict[str, Tensor]:
    """A gaussian direction without its part along another one, of length 1."""
    drawn = {}
    for name, value in along.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "surface", name))
        drawn[name] = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
    shared = sum(float((drawn[name] * value).sum()) for name, value in along.items())
    rest = {name: drawn[name] - shared * value for name, value in along.items()}
    length = _norm(rest)
    if length < 1e-9 * _norm(drawn):
        raise InvalidInputError("a plane needs at least two parameters")
    return {name: value / length for name, value in rest.items()}
