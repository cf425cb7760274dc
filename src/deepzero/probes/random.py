"""Random directions: RGE, the paper's eq. (1) left."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero import validation
from deepzero.coordinates import StepContext
from deepzero.objective import Parameters
from deepzero.randomness import derive_seed

Draw = Callable[[Tensor, torch.Generator], Tensor]


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8, device=like.device)
    return bits.to(like.dtype) * 2 - 1


DISTRIBUTIONS: dict[str, Draw] = {"gaussian": _gaussian, "rademacher": _rademacher, "sphere": _gaussian}


@dataclass(frozen=True, slots=True)
class RandomDisplacement:
    """A random direction over all parameters, as the seed it is drawn from.

    Attributes:
        distribution: a name in :data:`DISTRIBUTIONS`.
        seed: seed of its generator.

    Example:
        >>> step = RandomDisplacement("rademacher", seed=0)
        >>> step.apply({"w": torch.zeros(4)}, 0.5)["w"].abs()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    distribution: str
    seed: int

    def direction(self, like: Parameters) -> dict[str, Tensor]:
        """:math:`u` in the order, shapes, dtypes and device of ``like``; the same tensors at every call."""
        device = next(iter(like.values())).device
        generator = torch.Generator(device).manual_seed(self.seed)
        draw = DISTRIBUTIONS[self.distribution]
        parts = {name: draw(p, generator) for name, p in like.items()}
        if self.distribution == "sphere":
            norm = math.sqrt(sum(float(part.double().square().sum()) for part in parts.values()))
            parts = {name: part / norm for name, part in parts.items()}
        return parts

    def apply(self, parameters: Parameters, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u`."""
        return _moved(parameters, self.direction(parameters), offset)


class RandomPerturbations:
    """Directions :math:`u_1 \\dots u_q` over all trainable parameters, regenerated from ``(seed, k)``, never stored.

    The estimate is :math:`\\hat\\nabla\\ell = \\frac{c}{q} \\sum_k s_k u_k` with slopes :math:`s_k`; :math:`c = 1` for
    gaussian (:math:`N(0, I)`, the paper's) and rademacher directions, :math:`c = d` for directions uniform on the unit
    sphere of :math:`R^d`. In all three cases :math:`E[c\\,u u^T] = I`: a linear function is estimated without bias.
    """

    def __init__(self, queries: int, distribution: str, seed: int, parameters: Parameters) -> None:
        self._queries = queries
        self._distribution = distribution
        self._seed = seed
        self._like = parameters
        self._dimension = sum(p.numel() for p in parameters.values())

    def __len__(self) -> int:
        return self._queries

    def displacement(self, k: int) -> RandomDisplacement:
        """:math:`u_k` as the seed it is drawn from."""
        return RandomDisplacement(self._distribution, derive_seed(self._seed, k))

    def direction(self, k: int) -> dict[str, Tensor]:
        """:math:`u_k`, the same tensors at every call."""
        return self.displacement(k).direction(self._like)

    def stack(self, start: int, stop: int) -> dict[str, Tensor]:
        """Directions ``start`` to ``stop - 1``, stacked to ``[stop - start, *shape]`` per parameter."""
        directions = [self.direction(k) for k in range(start, stop)]
        return {name: torch.stack([d[name] for d in directions]) for name in self._like}

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u_k`."""
        return _moved(parameters, self.direction(k), offset)

    def combine(self, slopes: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The weighted sum, accumulated in ``dtype`` (default: each parameter's own)."""
        scale = (self._dimension if self._distribution == "sphere" else 1) / self._queries
        total = {name: torch.zeros_like(p, dtype=dtype or p.dtype) for name, p in self._like.items()}
        for k, slope in enumerate((slopes * scale).tolist()):
            for name, part in self.direction(k).items():
                total[name].add_(part.to(total[name].dtype), alpha=slope)
        return {name: value.to(self._like[name].dtype) for name, value in total.items()}

    def describe(self, k: int) -> str:
        """For example ``gaussian direction 17``."""
        return f"{self._distribution} direction {k}"


def _moved(parameters: Parameters, direction: Parameters, offset: float) -> dict[str, Tensor]:
    return {
        name: p + offset * direction[name].to(p.dtype) if name in direction else p for name, p in parameters.items()
    }


@dataclass(frozen=True)
class RandomProbes:
    """``queries`` random directions a step; a pure function of ``(seed, step)``, independent of the global RNG."""

    queries: int
    distribution: str = "gaussian"
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("queries", self.queries)
        validation.choice("distribution", self.distribution, DISTRIBUTIONS)

    def draw(self, context: StepContext) -> RandomPerturbations:
        """The directions of a step."""
        seed = derive_seed(self.seed, "directions", context.step)
        return RandomPerturbations(self.queries, self.distribution, seed, context.objective.parameters())

    def state(self) -> dict[str, object]:
        """Everything the directions depend on."""
        return {"probes": "random", "queries": self.queries, "distribution": self.distribution, "seed": self.seed}
