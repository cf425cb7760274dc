"""The estimate at the configured step size against autograd, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deepzero.doctor.records import GradientCheck, LayerCheck
from deepzero.doctor.reference import Exact
from deepzero.probes import CoordinatePerturbations

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


def check_gradients(pairs: Pairs, exact: Exact | None) -> GradientCheck:
    """Cosine and relative error, of each parameter and over all."""
    layers = tuple(_layer(name, found, true) for name, (found, true) in pairs.items())
    if exact is None:
        return GradientCheck(None, None, None, layers)
    found = torch.cat([pair[0] for pair in pairs.values()])
    true = torch.cat([pair[1] for pair in pairs.values() if pair[1] is not None])
    return GradientCheck(exact.kind, _cosine(found, true), _relative_error(found, true), layers)


def _layer(name: str, found: Tensor, true: Tensor | None) -> LayerCheck:
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
    return _finite(float(found @ true) / scale) if scale > 0 else None


def _relative_error(found: Tensor, true: Tensor) -> float | None:
    scale = float(true.norm())
    return _finite(float((found - true).norm()) / scale) if scale > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
