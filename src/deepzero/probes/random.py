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

    def direction(self, k: int) -> dict[str, Tensor]:
        """:math:`u_k`, the same tensors at every call."""
        device = next(iter(self._like.values())).device
        generator = torch.Generator(device).manual_seed(derive_seed(self._seed, k))
        draw = DISTRIBUTIONS[self._distribution]
        parts = {name: draw(like, generator) for name, like in self._like.items()}
        if self._distribution == "sphere":
            norm = math.sqrt(sum(float(part.double().square().sum()) for part in parts.values()))
            parts = {name: part / norm for name, part in parts.items()}
        return parts

    def stack(self, start: int, stop: int) -> dict[str, Tensor]:
        """Directions ``start`` to ``stop - 1``, stacked to ``[stop - start, *shape]`` per parameter."""
        directions = [self.direction(k) for k in range(start, stop)]
        return {name: torch.stack([d[name] for d in directions]) for name in self._like}

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u_k`."""
        direction = self.direction(k)
        return {
            name: p + offset * direction[name].to(p.dtype) if name in direction else p for name, p in parameters.items()
        }

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
