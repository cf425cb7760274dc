"""Tensor-wise random directions: each moves one parameter tensor and leaves the others as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero import validation
from deepzero.coordinates import StepContext
from deepzero.objective import Parameters, parameters_of
from deepzero.probes.random import RandomDisplacement, RandomPerturbations
from deepzero.randomness import derive_seed

GAUSSIAN = "gaussian"


@dataclass(frozen=True, slots=True)
class TensorDisplacement:
    """A Gaussian direction in one parameter tensor, as the seed it is drawn from.

    Attributes:
        name: parameter.
        seed: of the direction's generator.
        scale: step size of the parameter in units of the estimate's.

    Example:
        >>> moved = TensorDisplacement("w", seed=0).apply({"w": torch.zeros(2), "b": torch.zeros(2)}, 0.5)
        >>> bool(moved["w"].all()), moved["b"]
        (True, tensor([0., 0.]))
    """

    name: str
    seed: int
    scale: float = 1.0

    def apply(self, parameters: Parameters, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u`."""
        inside = RandomDisplacement(GAUSSIAN, self.seed, ((self.name, self.scale),))
        return {**parameters, **inside.apply({self.name: parameters[self.name]}, offset)}


class TensorwisePerturbations:
    """Directions :math:`u_1 \\dots u_q`, of which :math:`u_k` is :math:`N(0, I)` in tensor :math:`(r + k) \\bmod n`.

    With :math:`r` uniform over the :math:`n` tensors :math:`E[n\\,u u^T] = I`, so the estimate
    :math:`\\hat\\nabla\\ell = \\frac{n}{q} \\sum_k s_k u_k` of a linear function has no bias. Where :math:`q` is a
    multiple of :math:`n`, the variance of an entry :math:`i` of tensor :math:`j` is
    :math:`n (\\lVert g_j \\rVert^2 + g_i^2) / q`: the noise of one tensor does not reach another one.
    """

    def __init__(
        self, queries: int, seed: int, parameters: Parameters, scales: Mapping[str, float] | None = None
    ) -> None:
        self.scales = dict(scales or {})
        self._queries = queries
        self._seed = seed
        self._like = parameters
        self._names = list(parameters)
        self._first = derive_seed(seed, "first tensor") % len(self._names)

    def __len__(self) -> int:
        return self._queries

    def tensor(self, k: int) -> str:
        """Name of the parameter that direction ``k`` moves."""
        return self._names[(self._first + k) % len(self._names)]

    def scale(self, name: str) -> float:
        """Step size of a parameter in units of the estimate's."""
        return self.scales.get(name, 1.0)

    def displacement(self, k: int) -> TensorDisplacement:
        """:math:`u_k` as the seed it is drawn from."""
        name = self.tensor(k)
        return TensorDisplacement(name, self._inside(k, self._like).displacement(0).seed, self.scale(name))

    def stack(self, start: int, stop: int) -> dict[str, Tensor]:
        """Directions ``start`` to ``stop - 1``, stacked to ``[stop - start, *shape]`` per parameter; mostly zeros."""
        stacked = {name: p.new_zeros((stop - start, *p.shape)) for name, p in self._like.items()}
        for k in range(start, stop):
            stacked[self.tensor(k)][k - start] = self._direction(k)
        return stacked

    def displace(self, parameters: Parameters, k: int, offset: float) -> dict[str, Tensor]:
        """:math:`\\theta + t u_k`."""
        return self.displacement(k).apply(parameters, offset)

    def nominal(self, offsets: Sequence[float]) -> Tensor:
        """Steps as asked for, ``[len(offsets), q]`` float64."""
        return torch.tensor(list(offsets), dtype=torch.float64).unsqueeze(1).expand(-1, self._queries)

    def taken(self, parameters: Parameters, offsets: Sequence[float]) -> Tensor:
        """Steps that rounding leaves of :math:`\\theta + t u`, projected on :math:`u`, ``[len(offsets), q]``."""
        steps = []
        for k in range(self._queries):
            name = self.tensor(k)
            steps.append(self._inside(k, parameters).taken({name: parameters[name]}, offsets))
        return torch.cat(steps, dim=1)

    def combine(self, slopes: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The weighted sum, accumulated in ``dtype`` (default: each parameter's own)."""
        total = {name: torch.zeros_like(p, dtype=dtype or p.dtype) for name, p in self._like.items()}
        for k, slope in enumerate((slopes * (len(self._names) / self._queries)).tolist()):
            name = self.tensor(k)
            total[name].add_(self._direction(k).to(total[name].dtype), alpha=slope / self.scale(name))
        return {name: value.to(self._like[name].dtype) for name, value in total.items()}

    def describe(self, k: int) -> str:
        """For example ``gaussian direction 17 (in conv1.weight)``."""
        return f"{GAUSSIAN} direction {k} (in {self.tensor(k)})"

    def _inside(self, k: int, parameters: Parameters) -> RandomPerturbations:
        """Direction ``k`` as a random direction of a network that has its tensor alone."""
        name = self.tensor(k)
        own = {name: parameters[name]}
        return RandomPerturbations(1, GAUSSIAN, derive_seed(self._seed, k), own, {name: self.scale(name)})

    def _direction(self, k: int) -> Tensor:
        return self._inside(k, self._like).direction(0)[self.tensor(k)]


@dataclass(frozen=True)
class TensorwiseProbes:
    """``queries`` directions a step, each in one parameter tensor; a pure function of ``(seed, step)``."""

    queries: int
    seed: int = 0

    def __post_init__(self) -> None:
        validation.count("queries", self.queries)

    def draw(self, context: StepContext) -> TensorwisePerturbations:
        """The directions of a step."""
        seed = derive_seed(self.seed, "directions", context.step)
        return TensorwisePerturbations(self.queries, seed, parameters_of(context.objective), context.scales)

    def state(self) -> dict[str, object]:
        """Everything the directions depend on."""
        return {"probes": "tensorwise", "queries": self.queries, "seed": self.seed}
