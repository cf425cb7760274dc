"""The estimate at the configured step size: against autograd, parameter by parameter, and one step along it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepzero.coordinates import Coordinates
from deepzero.doctor.exact_gradients import Exact
from deepzero.estimator import Estimate
from deepzero.objective import Objective, parameters_of

ROUNDING = 1e-9
"""Share of the whole exact gradient's norm up to which a parameter has none, as a bias in front of batch norm has."""


@dataclass(frozen=True)
class LayerCheck:
    """The estimate of one parameter at the configured step size.

    Attributes:
        name: of the parameter.
        samples: coordinates looked at.
        zeros: part of them whose estimate is exactly 0.
        norm: Euclidean norm of the estimate on them; None if a loss was not finite.
        cosine: to autograd on them; None without autograd, where one of the two is 0, or of one
            coordinate.
        relative_error: to autograd on them; None without autograd, or where autograd is 0.
    """

    name: str
    samples: int
    zeros: float
    norm: float | None
    cosine: float | None
    relative_error: float | None


@dataclass(frozen=True)
class GradientCheck:
    """The estimate at the configured step size, parameter by parameter.

    Attributes:
        reference: ``float64 autograd``, ``autograd``, or None where it does not exist.
        cosine: of the whole estimate, in which a parameter counts by its coordinates, not by how many were looked at.
        relative_error: likewise.
        layers: one for each parameter with a coordinate.
        expected_cosine: for random directions what they reach on average, :math:`\\sqrt{q / (d + q + 1)}`.
    """

    reference: str | None
    cosine: float | None
    relative_error: float | None
    layers: tuple[LayerCheck, ...]
    expected_cosine: float | None = None


@dataclass(frozen=True)
class Trial:
    """One plain gradient step along the estimate at the peak learning rate.

    Attributes:
        learning_rate: the learning rate.
        before: the loss.
        after: the loss on the same batch after the step; None if it is not finite.
    """

    learning_rate: float
    before: float
    after: float | None


def check_gradients(
    estimated: Mapping[str, Tensor],
    exact: Exact | None,
    sampled: Coordinates | None = None,
    sizes: Mapping[str, int] | None = None,
) -> GradientCheck:
    """Cosine and relative error, of each parameter and over all.

    Args:
        estimated: entries of the gradient by parameter name: all of them, or those that are ``sampled``.
        exact: what they are compared with, if there is anything.
        sampled: coordinates of the entries, if they are not all.
        sizes: entries of each parameter that an estimate has: those ``sampled`` then stand for all, so that
            :math:`\\lVert e\\rVert^2` and :math:`\\lVert g\\rVert^2` are estimated without bias.
    """
    entries = {name: part.reshape(-1).double().cpu() for name, part in estimated.items()}
    if exact is None:
        return GradientCheck(None, None, None, tuple(_layer(name, part, None) for name, part in entries.items()))
    known = {name: exact.gradients[name].reshape(-1).double().cpu() for name in entries}
    if sampled is not None:
        known = {name: part[sampled[name]] for name, part in known.items()}
    found, true = torch.cat(list(entries.values())), torch.cat(list(known.values()))
    floor = ROUNDING * float(true.norm())
    layers = tuple(_layer(name, part, known[name], floor=floor) for name, part in entries.items())
    if sizes is not None:
        counts = [len(part) for part in entries.values()]
        weights = [math.sqrt(sizes[name] / max(count, 1)) for name, count in zip(entries, counts, strict=True)]
        weight = torch.tensor(weights, dtype=found.dtype).repeat_interleave(torch.tensor(counts))
        found, true = found * weight, true * weight
    return GradientCheck(exact.kind, _cosine(found, true), _relative_error(found, true), layers)


def _layer(name: str, found: Tensor, true: Tensor | None, *, floor: float = 0.0) -> LayerCheck:
    if true is not None and float(true.norm()) <= floor:
        true = torch.zeros_like(true)
    return LayerCheck(
        name=name,
        samples=len(found),
        zeros=float((found == 0).double().mean()),
        norm=_finite(float(found.norm())),
        cosine=None if true is None else _cosine(found, true),
        relative_error=None if true is None else _relative_error(found, true),
    )


def _cosine(found: Tensor, true: Tensor) -> float | None:
    scale = float(found.norm() * true.norm())
    return _finite(float(found @ true) / scale) if scale > 0 and len(found) > 1 else None


def _relative_error(found: Tensor, true: Tensor) -> float | None:
    scale = float(true.norm())
    return _finite(float((found - true).norm()) / scale) if scale > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def try_step(
    objective: Objective, batch: tuple[Any, ...], estimate: Estimate, learning_rate: float, *, seed: int
) -> Trial:
    """One plain gradient step on the same batch, on a copy of the parameters."""
    moved = {name: p - learning_rate * estimate.gradients[name] for name, p in parameters_of(objective).items()}
    after = float(objective.evaluate(moved, batch, seed=seed).loss)
    return Trial(learning_rate, float(estimate.loss), after if math.isfinite(after) else None)
