"""Prints what the chunks of some networks ask their device for, and have to wait for: a program of its own."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).parents[1]))

import pretended
import torch
import torch.nn.functional as F
from oracle import initialize, normal, some_coordinates
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deepzero as dz
from deepzero.evaluators import propagated_step
from deepzero.models.resnet import BasicBlock, PaddedShortcut

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.unique_consecutive,
    aten._unique2, aten.unique_dim,
}  # fmt: skip


def residual() -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    blocks = [BasicBlock(4, 4, stride=1, shortcut=PaddedShortcut), BasicBlock(4, 8, stride=2, shortcut=PaddedShortcut)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (residual, (4, 3, 8, 8)),
    "pooling": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(20, 3)),
        (4, 3, 8, 8),
    ),
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)), (4, 6)),
    "transformer": (transformer, (4, 4, 8)),
}  # fmt: skip


def asked_by(make: Callable[[], nn.Module], shape: tuple[int, ...], device: torch.device) -> Counter[str]:
    """Operations that wait, and where they are called, while some coordinates of a network are propagated."""
    asked: Counter[str] = Counter()
    computed, differences = pretended.computed, propagated_step.loss_differences

    def counting(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        there = any(isinstance(a, pretended.Pretended) for a in pytree.tree_leaves((args, kwargs)))
        out = computed(func, args, kwargs)
        here = any(isinstance(o, Tensor) and not isinstance(o, pretended.Pretended) for o in pytree.tree_leaves(out))
        if there and (here or func.overloadpacket in WAITS):
            frames = [
                f"{Path(f.filename).name}: {f.line}" for f in traceback.extract_stack() if "/deepzero/" in f.filename
            ]
            asked[f"{func} at {frames[-1]}"] += 1
        return out

    def watched(*args: Any) -> Tensor:
        with mock.patch.object(pretended, "computed", counting):
            return differences(*args)

    model = pretended.moved(initialize(make()), device)
    x, y = normal(*shape).to(device), torch.tensor([0, 2, 1, 0]).to(device)
    chosen = some_coordinates(model, most=4)
    zo = dz.CGE(model, loss=F.cross_entropy, sparsity=chosen, evaluator=dz.PropagationEvaluator(verify=False))
    zo.estimate(x, y)
    with mock.patch.object(propagated_step, "loss_differences", watched):
        zo.estimate(x, y)
    return asked


if __name__ == "__main__":
    with pretended.device() as place:
        found = {name: asked_by(make, shape, place) for name, (make, shape) in NETWORKS.items()}
    sys.stdout.write(json.dumps(found))
