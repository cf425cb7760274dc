"""A few directions of a step, and the exact slopes along them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from deepzero.coordinates import Coordinates
from deepzero.estimator import Estimator
from deepzero.probes import CoordinatePerturbations, Perturbations, RandomPerturbations
from deepzero.randomness import derive_seed


def sample(zo: Estimator, perturbations: Perturbations, count: int) -> Perturbations:
    """At most ``count`` of the directions of a step; coordinates are spread evenly over the parameters."""
    if isinstance(perturbations, CoordinatePerturbations):
        chosen = spread(perturbations.coordinates, count, zo.seed)
        return perturbations.among(chosen)
    if isinstance(perturbations, RandomPerturbations):
        return perturbations.first(count)
    return perturbations


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


def exact_slopes(perturbations: Perturbations, gradients: Mapping[str, Tensor]) -> Tensor:
    """:math:`\\langle g, p_k \\rangle` for every direction, ``[K]`` float64."""
    if isinstance(perturbations, CoordinatePerturbations):
        chosen = perturbations.coordinates
        return torch.cat([gradients[name].reshape(-1).cpu()[index] for name, index in chosen.items()]).double()
    origin = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    slopes = []
    for k in range(len(perturbations)):
        direction = perturbations.displace(origin, k, 1.0)
        slopes.append(sum((direction[name].double() * g.double()).sum() for name, g in gradients.items()))
    return torch.stack([torch.as_tensor(slope) for slope in slopes]).cpu()
