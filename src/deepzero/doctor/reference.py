"""What slopes are compared with: autograd in float64 where it exists, else the agreement of neighbouring steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from deepzero.objective import NetworkObjective, Objective, as_complex, as_number, device_of, parameters_of
from deepzero.placement import Attributes

SAME_LOSS = 1e-3
"""Relative difference up to which the float64 loss is that of the same function."""


@dataclass(frozen=True)
class Exact:
    """Gradients by autograd, by parameter name, and in what precision: ``float64 autograd`` or ``autograd``."""

    kind: str
    gradients: dict[str, Tensor]


def exact_gradients(objective: Objective, batch: tuple[Any, ...], *, seed: int, loss: float) -> Exact | None:
    """Gradients by autograd, in float64 if the model runs in it and gives the same loss; None where there are none.

    Args:
        objective: only a network can have them.
        batch: the arguments of an estimate.
        seed: of dropout masks and the like.
        loss: the loss that evaluations find.
    """
    if not isinstance(objective, NetworkObjective) or (objective.hidden and objective.repeatable):
        return None
    for dtype, kind in ((torch.float64, "float64 autograd"), (None, "autograd")):
        try:
            value, gradients = _differentiate(objective, batch, dtype, seed)
        except Exception:  # anything may be wrong with the backward of a model that is trained without it
            continue
        finite = all(bool(g.isfinite().all()) for g in gradients.values())
        if finite and (dtype is None or abs(value - loss) <= SAME_LOSS * (1 + abs(loss))):
            return Exact(kind, gradients)
    return None


def _differentiate(
    objective: NetworkObjective, batch: tuple[Any, ...], dtype: torch.dtype | None, seed: int
) -> tuple[float, dict[str, Tensor]]:
    _, draws = objective.base(parameters_of(objective), batch, seed=seed)
    places = objective.places()
    parameters = {n: p.clone().requires_grad_() for n, p in _cast(parameters_of(objective), dtype).items()}
    fixed = {n: p.detach() for n, (p, _) in places.parameters.items() if n not in parameters}
    buffers = {n: b.detach().clone() for n, (b, _) in places.buffers.items()}
    before = Attributes.of(places.modules)
    try:
        with torch.enable_grad(), draws.replaying(), objective.scope(draws, device_of(parameters)):
            moving = {n: as_complex(p, places.parameters[n][0]) for n, p in parameters.items()}
            with places.holding({**moving, **_cast({**fixed, **buffers}, dtype)}, as_parameters=False):
                value = as_number(objective.program(objective.model, *objective.given(_cast(batch, dtype))))
            found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    finally:
        before.restore()
    return float(value.detach()), dict(zip(parameters, found, strict=True))


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if floating and dtype is not None else value

    return pytree.tree_map(cast, values)


def agreed_slopes(slopes: Tensor, steps: Sequence[float]) -> tuple[Tensor, float]:
    """Slopes on which two neighbouring steps agree best, extrapolated to step 0, and their relative disagreement.

    For an error of :math:`c\\mu^2` Richardson's :math:`(r^2 s(\\mu) - s(r\\mu)) / (r^2 - 1)` is free of it.

    Args:
        slopes: ``[S, K]``, of the central stencil, at increasing steps.
        steps: the ``S`` steps.

    Example:
        >>> steps = [0.1, 0.2]
        >>> cubic = torch.tensor([[3 + h**2] for h in steps], dtype=torch.float64)  # (1 + t)**3 at t = +-h
        >>> value, _ = agreed_slopes(cubic, steps)
        >>> round(float(value), 6)
        3.0
    """
    best = (torch.zeros(slopes.shape[1], dtype=torch.float64), float("inf"))
    for i in range(len(steps) - 1):
        near, far = slopes[i], slopes[i + 1]
        scale = float(near.norm() + far.norm()) / 2
        gap = float((near - far).norm())
        if scale > 0 and gap / scale < best[1]:
            squared = (steps[i + 1] / steps[i]) ** 2
            best = ((squared * near - far) / (squared - 1), gap / scale)
    return best
