"""A few of a step's directions, the slopes of a gradient along them, and the cosine that they can reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.estimator import Estimator
from deepzero.probes import Perturbations, coordinates_of
from deepzero.randomness import derive_seed


def directions_of(zo: Estimator, batch: tuple[Any, ...]) -> Perturbations:
    """The directions of the next step: at least one."""
    directions = zo.directions(*batch)
    if len(directions) == 0:
        raise InvalidInputError("no coordinate is queried: give sparsity at least one coordinate")
    return directions


def directions_by_parameter(directions: Perturbations) -> dict[str, int]:
    """Number of coordinate directions of each parameter; empty for directions of another kind."""
    return {name: len(index) for name, index in (coordinates_of(directions) or {}).items()}


def sample(
    directions: Perturbations, count: int, seed: int, *, gradients: Mapping[str, Tensor] | None = None
) -> Perturbations:
    """About ``count`` of the directions; all of a kind that can be restricted neither by ``among`` nor by ``first``.

    Args:
        directions: coordinates are spread evenly over the parameters, of others the first are taken.
        count: of directions.
        seed: of the choice of coordinates.
        gradients: by parameter name; the coordinates with the largest entries are chosen, if there are any but 0.
    """
    coordinates = coordinates_of(directions)
    among, first = (getattr(directions, name, None) for name in ("among", "first"))
    if coordinates is not None and among is not None:
        largest = None if gradients is None else steepest(coordinates, gradients, count)
        restricted: Perturbations = among(largest or spread(coordinates, count, seed))
        return restricted
    return directions if first is None else first(count)


def spread(coordinates: Coordinates, count: int, seed: int) -> Coordinates:
    """About ``count`` coordinates, equally many of each parameter; with fewer than there are parameters, one of some.

    Example:
        >>> some = spread(Coordinates.dense({"a": torch.Size([9]), "b": torch.Size([1])}), 6, seed=0)
        >>> {name: len(index) for name, index in some.items()}
        {'a': 3, 'b': 1}
    """
    names = coordinates.names
    if count < len(names):
        names = [names[i * len(names) // count] for i in range(count)]
    each = max(1, count // len(names))
    generator = torch.Generator().manual_seed(derive_seed(seed, "doctor"))
    return Coordinates(
        {n: coordinates[n][torch.randperm(len(coordinates[n]), generator=generator)[:each]] for n in names}
    )


def steepest(coordinates: Coordinates, gradients: Mapping[str, Tensor], count: int) -> Coordinates:
    """At most ``count`` of the coordinates: those with the largest entries of a gradient, none where it is 0.

    Example:
        >>> every = Coordinates.dense({"a": torch.Size([3]), "b": torch.Size([1])})
        >>> dict(steepest(every, {"a": torch.tensor([0.0, -3.0, 1.0]), "b": torch.tensor([2.0])}, 2))
        {'a': tensor([1]), 'b': tensor([0])}
    """
    sizes = torch.cat([gradients[name].reshape(-1)[index].abs().double() for name, index in coordinates.items()])
    largest = torch.zeros(len(sizes), dtype=torch.bool)
    largest[sizes.topk(min(count, len(sizes))).indices] = True
    parts = torch.split(largest & (sizes > 0), [len(index) for index in coordinates.values()])
    return Coordinates({name: index[part] for (name, index), part in zip(coordinates.items(), parts, strict=True)})


def slopes_along(directions: Perturbations, gradients: Mapping[str, Tensor]) -> Tensor:
    """:math:`\\langle g, p_k \\rangle` for every direction, ``[K]`` float64."""
    coordinates = coordinates_of(directions)
    if coordinates is not None:
        return torch.cat([gradients[name].reshape(-1).cpu()[index] for name, index in coordinates.items()]).double()
    origin = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    slopes = []
    for k in range(len(directions)):
        direction = directions.displace(origin, k, 1.0)
        slopes.append(sum((direction[name].double() * g.double()).sum() for name, g in gradients.items()))
    return torch.stack([torch.as_tensor(slope) for slope in slopes]).cpu()


def expected_cosine(size: int, queries: int) -> float:
    """Mean cosine of a gradient of ``d`` entries to its estimate from ``q`` gaussian directions, to first order.

    .. math:: \\sqrt{q / (d + q + 1)}
    """
    return math.sqrt(queries / (size + queries + 1))
