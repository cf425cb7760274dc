"""The estimate at the configured step size against autograd, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deepzero.doctor.records import GradientCheck, LayerCheck
from deepzero.doctor.reference import Exact
from deepzero.probes import CoordinatePerturbations

ROUNDING = 1e-9
"""A parameter whose exact gradient is so much smaller than the whole has none, as a bias in front of batch norm has."""

Pairs = Mapping[str, tuple[Tensor, Tensor | None]]
"""By parameter: estimated entries, and the exact ones where there are any; both float64, one-dimensional."""


def sampled_pairs(perturbations: CoordinatePerturbations, slopes: Tensor, exact: Exact | None) -> Pairs:
    """Slopes ``[K]`` of sampled coordinates, sorted by parameter."""
    pairs: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, index in perturbations.coordinates.items():
        start = perturbations.start(name)
        found = slopes[start : start + len(index)].double().cpu()
        true = exact.gradients[name].reshape(-1).double().cpu()[index] if exact is not None else None
        pairs[name] = (found, true)
    return pairs


def estimated_pairs(gradients: Mapping[str, Tensor], exact: Exact | None) -> Pairs:
    """A whole estimate, all coordinates of it."""
    return {
        name: (
            found.reshape(-1).double().cpu(),
            exact.gradients[name].reshape(-1).double().cpu() if exact is not None else None,
        )
        for name, found in gradients.items()
    }


def check_gradients(pairs: Pairs, exact: Exact | None, sizes: Mapping[str, int] | None = None) -> GradientCheck:
    """Cosine and relative error, of each parameter and over all.

    Args:
        pairs: estimated and exact entries.
        exact: where the exact ones are from.
        sizes: entries of each parameter that an estimate has, where ``pairs`` holds some of them: those looked at then
            stand for all, so that :math:`\\lVert e\\rVert^2` and :math:`\\lVert g\\rVert^2` are estimated without bias.
    """
    if exact is None:
        return GradientCheck(None, None, None, tuple(_layer(name, found, None) for name, (found, _) in pairs.items()))
    found = torch.cat([pair[0] for pair in pairs.values()])
    true = torch.cat([pair[1] for pair in pairs.values() if pair[1] is not None])
    layers = tuple(_layer(name, *pair, floor=ROUNDING * float(true.norm())) for name, pair in pairs.items())
    if sizes is not None:
        weights = [math.sqrt(sizes[name] / max(len(pair[0]), 1)) for name, pair in pairs.items()]
        each = torch.tensor(weights, dtype=found.dtype)
        weight = each.repeat_interleave(torch.tensor([len(pair[0]) for pair in pairs.values()]))
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
