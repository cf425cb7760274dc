"""The error of slopes on sampled coordinates: what rounding does to them, and what the finite step does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from deepzero.coordinates import Coordinates
from deepzero.measure.cases import Problem, some_of_each
from deepzero.measure.naive_loop import Form
from deepzero.measure.sides import DeepZero, Naive

SAMPLE = 48
"""Coordinates that are compared, about: as many of each parameter, one at least."""
DOUBLE = Form(double=True)


@dataclass(frozen=True)
class SlopeErrors:
    """Relative errors ``|found - right| / |right|`` of the vector of sampled slopes.

    Attributes:
        coordinates: coordinates of the sample.
        step_size: of the differences.
        rounding: against differences in float64 at the same step, by side.
        whole: against the derivatives by autograd in float64, by side; ``exact difference`` is the step's own share.
    """

    coordinates: int
    step_size: float
    rounding: dict[str, float]
    whole: dict[str, float]


def slope_errors(problem: Problem, sides: Sequence[Naive | DeepZero]) -> SlopeErrors:
    """Compare the slopes of the sides on the same coordinates."""
    each = max(1, SAMPLE // len(problem.coordinates.names))
    chosen = some_of_each(problem.coordinates, dict.fromkeys(problem.coordinates.names, each), problem.seed)
    right = Naive(problem, DOUBLE).answers(chosen) / problem.step_size
    exact = derivatives(problem, chosen)
    found = {side.name: side.answers(chosen) / problem.step_size for side in sides}
    return SlopeErrors(
        chosen.count,
        problem.step_size,
        {name: relative(slopes, right) for name, slopes in found.items()},
        {name: relative(slopes, exact) for name, slopes in {**found, "exact difference": right}.items()},
    )


def derivatives(problem: Problem, chosen: Coordinates) -> Float64[Tensor, " k"]:
    """The derivatives of the loss by some coordinates, in float64."""
    twin = copy.deepcopy(problem.model).double()
    x, y = DOUBLE.inputs(problem.batch[0]), problem.batch[1]
    parameters = dict(twin.named_parameters())
    found = torch.autograd.grad(F.cross_entropy(twin(x), y), [parameters[name] for name in chosen.names])
    pieces = [one.reshape(-1)[indices.to(one.device)] for one, indices in zip(found, chosen.values(), strict=True)]
    return torch.cat(pieces).cpu()


def relative(found: Float64[Tensor, " k"], right: Float64[Tensor, " k"]) -> float:
    """The distance of two vectors over the length of the second."""
    return float((found - right).norm() / right.norm())
