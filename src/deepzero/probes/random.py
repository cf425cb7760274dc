"""Random directions: RGE, the paper's eq. (1) left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero import validation
from deepzero.coordinates import StepContext
from deepzero.errors import InvalidInputError
from deepzero.objective import Parameters, parameters_of
from deepzero.randomness import derive_seed

Draw = Callable[[Tensor, torch.Generator], Tensor]


def _gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8, device=like.device)
    return bits.to(like.dtype) * 2 - 1


DISTRIBUTIONS: dict[str, Draw] = {"gaussian": _gaussian, "rademacher": _rademacher, "sphere": _gaussian}
"""Distributions of the directions of RGE, by name."""


@dataclass(frozen=True, slots=True)
class RandomDisplacement:
    """A random direction over all parameters, as the seed it is drawn from.

    Attributes:
        distribution: a name in :data:`DISTRIBUTIONS`.
        seed: seed of its generator.
        scales: step size of each parameter in units of the estimate's, as pairs; 1 where a name is missing.

    Example:
        >>> step = RandomDisplacement("rademacher", seed=0)
        >>> step.apply({"w": torch.zeros(4)}, 0.5)["w"].abs()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    distribution: str
    seed: int
    scales: tuple[tuple[str, float], ...] = ()

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
        return _moved(parameters, self.direction(parameters), offset, dict(self.scales))


class RandomPerturbations:
    """Directions :math:`u_1 \\dots u_q` over all trainable parameters, regenerated from ``(seed, k)``, never stored.

    The estimate is :math:`\\hat\\nabla\\ell = \\frac{c}{q} \\sum_k s_k u_k` with slopes :math:`s_k`; :math:`c = 1` for
    gaussian (:math:`N(0, I)`, the paper's) and rademacher directions, :math:`c = d` for directions uniform on the unit
    sphere of :math:`R^d`. In all three cases :math:`E[c\\,u u^T] = I`: a linear function is estimated without bias.
    """

    def __init__(
        self,
        queries: int,
        distribution: str,
        seed: int,
        parameters: Parameters,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.scales = dict(scales or {})
        self._queries = queries
        self._distribution = distribution
        self._seed = seed
        self._like = parameters
        self._dimension = sum(p.numel() for p in parameters.values())

    def __len__(self) -> int:
        return self._queries

    def first(self, count: int) -> RandomPerturbations:
        """Directions :math:`u_1` to :math:`u_n` alone, with :math:`n` at most ``count``."""
        some = min(count, self._queries)
        return RandomPerturbations(some, self._distribution, self._seed, self._like, self.scales)

    def displacement(self, k: int) -> RandomDisplacement:
        """:math:`u_k` as the seed it is drawn from."""
        return RandomDisplacement(self._distribution, derive_seed(self._seed, k), tuple(self.scales.items()))

    def direction(self, k: int) -> dict[str, Tensor]:
        """:math:`u_k`, the same tensors at every call."""
        return self.displacement(k).direction(self._like)

    def stack(self, start: int, stop: int) -> dict[str, Tensor]:
        """Directions ``start`` to ``stop - 1``, stacked to ``[stop - start, *shape]`` per parameter."""
        directions = [self.direction(k) for k in range(start, stop)]
        return {name: torch.stack([d[name] for d in directions]) for name in self._like}

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u_k`."""
        return _moved(parameters, self.direction(k), offset, self.scales)

    def scale(self, name: str) -> float:
        """Step size of a parameter in units of the estimate's."""
        return self.scales.get(name, 1.0)

    def nominal(self, offsets: Sequence[float]) -> Tensor:
        """Steps as asked for, ``[len(offsets), q]`` float64."""
        return torch.tensor(list(offsets), dtype=torch.float64).unsqueeze(1).expand(-1, self._queries)

    def taken(self, parameters: Parameters, offsets: Sequence[float]) -> Tensor:
        """Steps that rounding leaves of :math:`\\theta + t u`, projected on :math:`u`, ``[len(offsets), q]`` float64.

        Where the rounding unit of every parameter is below a thousandth of the step, these are the steps asked for.
        """
        steps = self.nominal(offsets).clone()
        if not any(self._is_coarse(name, p, offsets) for name, p in parameters.items()):
            return steps
        for row, offset in enumerate(offsets):
            for k in range(self._queries):
                steps[row, k] *= self._share(parameters, k, offset)
        return steps

    def _is_coarse(self, name: str, parameter: Tensor, offsets: Sequence[float]) -> bool:
        if not parameter.numel() or (parameter.dtype == torch.float64 and float(parameter.abs().max()) < 1):
            return False
        unit = torch.finfo(parameter.dtype).eps * float(parameter.abs().max())
        return unit > 1e-3 * min(abs(offset) for offset in offsets) * self.scale(name)

    def _share(self, parameters: Parameters, k: int, offset: float) -> float:
        """The part of a step that survives rounding; refused if most of what remains is rounding."""
        direction = self.direction(k)
        moved = _moved(parameters, direction, offset, self.scales)
        along = length = error = 0.0
        for name, u in direction.items():
            wide = u.double() * self.scale(name)
            taken = (moved[name].double() - parameters[name].double()) / offset
            along += float((taken * wide).sum())
            length += float(wide.square().sum())
            error += float((taken - wide).square().sum())
        if error > 0.25 * length:
            raise InvalidInputError(
                f"{self.describe(k)} moved by {offset:g} is mostly rounding: the parameters' dtypes hold it with a "
                f"relative error of "
                f'{math.sqrt(error / length):.2g}; give a larger step_size, step_size="auto", or float32 or float64 '
                f"parameters"
            )
        return along / length

    def combine(self, slopes: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The weighted sum, accumulated in ``dtype`` (default: each parameter's own)."""
        scale = (self._dimension if self._distribution == "sphere" else 1) / self._queries
        total = {name: torch.zeros_like(p, dtype=dtype or p.dtype) for name, p in self._like.items()}
        for k, slope in enumerate((slopes * scale).tolist()):
            for name, part in self.direction(k).items():
                total[name].add_(part.to(total[name].dtype), alpha=slope / self.scale(name))
        return {name: value.to(self._like[name].dtype) for name, value in total.items()}

    def describe(self, k: int) -> str:
        """For example ``gaussian direction 17``."""
        return f"{self._distribution} direction {k}"


def _moved(
    parameters: Parameters, direction: Parameters, offset: float, scales: Mapping[str, float]
) -> dict[str, Tensor]:
    """``theta + t u`` in the parameters' memory formats."""
    moved = dict(parameters)
    for name, u in direction.items():
        p = parameters[name]
        moved[name] = torch.add(p, u.to(p.dtype), alpha=offset * scales.get(name, 1.0), out=torch.empty_like(p))
    return moved


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
        parameters = parameters_of(context.objective)
        return RandomPerturbations(self.queries, self.distribution, seed, parameters, context.scales)

    def state(self) -> dict[str, object]:
        """Everything the directions depend on."""
        return {"probes": "random", "queries": self.queries, "distribution": self.distribution, "seed": self.seed}
