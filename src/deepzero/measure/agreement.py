"""Whether the sides that are timed compute the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deepzero.errors import VerificationError
from deepzero.measure.cases import Problem
from deepzero.measure.plain_loops import Loop
from deepzero.measure.sides import BlockReuse, DeepZero, Naive
from deepzero.measure.timed_part import one_of_each

SAMPLES = 32
NOISE = 32 * torch.finfo(torch.float32).eps
"""Rounding of a float32 loss, relative to it: a sum over a few hundred roundings of either sign."""
RELATIVE = 2e-3
"""Rounding of a large difference, relative to the largest one."""


@dataclass(frozen=True)
class Agreement:
    """How far the loss differences of the sides lie from those of the naive loop.

    Attributes:
        coordinates: coordinates compared, one of each of as many parameters.
        largest: largest absolute loss difference among them.
        tolerance: what float32 rounding explains.
        deviation: largest deviation from the naive loop, by side.
    """

    coordinates: int
    largest: float
    tolerance: float
    deviation: dict[str, float]


def check(problem: Problem, naive: Naive, reuse: BlockReuse, deepzero: DeepZero) -> Agreement:
    """Compare loss differences on one coordinate of each of up to 32 parameters.

    Raises:
        VerificationError: they differ by more than the rounding of float32 explains.
    """
    chosen = one_of_each(problem.coordinates, SAMPLES, problem.seed)
    pairs = [(name, int(indices[0])) for name, indices in chosen.items()]
    expected = _answers(naive.loop, pairs)
    gradients = deepzero.estimate(chosen).gradients
    slopes = torch.stack([gradients[name].reshape(-1)[index] for name, index in pairs])
    found = {reuse.name: _answers(reuse.loop, pairs), deepzero.name: slopes.double() * problem.step_size}
    largest = float(expected.abs().max())
    tolerance = NOISE * (1 + abs(naive.loop.base)) + RELATIVE * largest
    deviation = {side: float((answers - expected).abs().max()) for side, answers in found.items()}
    for side, worst in deviation.items():
        if not worst <= tolerance:
            raise VerificationError(
                f"{side} and the naive loop disagree on {problem.case.name}: loss differences deviate by {worst:.3g}, "
                f"float32 rounding explains {tolerance:.3g}; their speeds are not comparable (please report it)"
            )
    return Agreement(len(pairs), largest, tolerance, deviation)


def _answers(loop: Loop, pairs: list[tuple[str, int]]) -> torch.Tensor:
    return torch.tensor([loop.difference(name, index) for name, index in pairs], dtype=torch.float64)
