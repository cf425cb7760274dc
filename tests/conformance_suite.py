"""Every probe, evaluator and stencil, and the network that they meet: shared by the suites of the CPU and of the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from oracle import initialize, normal
from torch import nn

import deepzero as dz
from deepzero.coordinates import AllCoordinates
from deepzero.evaluators import Evaluator
from deepzero.probes import DISTRIBUTIONS, CoordinateProbes, Probes, RandomProbes

PROBES: dict[str, Callable[[], Probes]] = {
    "coordinates": lambda: CoordinateProbes(AllCoordinates()),
    **{name: lambda name=name: RandomProbes(6, name, seed=3) for name in DISTRIBUTIONS},
}
EVALUATORS: dict[str, tuple[Callable[[], Evaluator], set[str]]] = {
    "sequential": (dz.SequentialEvaluator, set(PROBES)),
    "batched": (lambda: dz.BatchedEvaluator(chunk=4), set(PROBES)),
    "propagation": (dz.PropagationEvaluator, set(PROBES)),
    "auto": (dz.AutomaticEvaluator, set(PROBES)),
}
STENCILS = {stencil.name: stencil for stencil in (dz.FORWARD, dz.CENTRAL)}
SUITE = [(p, e, s) for p in PROBES for e, (_, accepted) in EVALUATORS.items() if p in accepted for s in STENCILS]

X = normal(5, 2, 5, 5)
Y = torch.tensor([0, 1, 2, 1, 0])


def network(dropout: float = 0.3) -> nn.Module:
    """Batch norm in train mode, dropout, a frozen bias and a tied pair of weights."""
    first, second = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        first,
        nn.Dropout(dropout),
        second,
        nn.Flatten(),
        nn.Linear(27, 3),
    )
    initialize(model)
    second.bias.requires_grad_(False)
    return model


def estimator(probe: str, evaluator: str, stencil: str, model: nn.Module, **options: Any) -> dz.Estimator:
    return dz.Estimator(
        dz.NetworkObjective(model, options.pop("loss", F.cross_entropy)),
        probes=PROBES[probe](),
        evaluator=EVALUATORS[evaluator][0](),
        stencil=STENCILS[stencil],
        step_size=options.pop("step_size", 1e-2),
        **options,
    )
