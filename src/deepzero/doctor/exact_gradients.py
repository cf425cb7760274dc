"""Gradients by autograd, in float64 where that exists: what estimates are compared with."""

from __future__ import annotations

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
