"""Prints what a chunk asks its device for and has to wait for; ``python waits.py NAME`` with a network of the table."""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import pretended
import torch
import torch.nn.functional as F
from oracle import initialize, normal, some_coordinates
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import deepzero as dz
from deepzero.evaluators import propagated_step
from deepzero.models import build

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.unique_consecutive,
    aten._unique2, aten.unique_dim,
}  # fmt: skip


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: build("resnet20"), (4, 3, 8, 8)),
    "pooling": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(20, 3)),
        (4, 3, 8, 8),
    ),
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)), (4, 6)),
    "transformer": (transformer, (4, 4, 8)),
}  # fmt: skip


def main(name: str) -> None:
    """Propagate some coordinates of a network on a device that counts."""
    asked: Counter[str] = Counter()
    inside, computed, differences = [False], pretended.computed, propagated_step.loss_differences

    def counting(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if inside[0]:
            there = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, pretended.Pretended)]
            out = computed(func, args, kwargs)
            leaves = [o for o in pytree.tree_leaves(out) if isinstance(o, Tensor)]
            back = any(not isinstance(o, pretended.Pretended) for o in leaves)
            if there and (func.overloadpacket in WAITS or back):
                frames = [f for f in traceback.extract_stack() if "/deepzero/" in f.filename]
                asked[f"{func} at {Path(frames[-1].filename).name}: {frames[-2].line} {frames[-3].line}"] += 1
            return out
        return computed(func, args, kwargs)

    def watched(*args: Any) -> Tensor:
        inside[0] = True
        try:
            return differences(*args)
        finally:
            inside[0] = False

    make, shape = NETWORKS[name]
    with pretended.device() as device:
        model = pretended.moved(initialize(make()), device)
        x, y = normal(*shape).to(device), torch.tensor([0, 2, 1, 0]).to(device)
        chosen = some_coordinates(model, most=4)
        zo = dz.CGE(model, loss=F.cross_entropy, sparsity=chosen, evaluator=dz.PropagationEvaluator(verify=False))
        zo.estimate(x, y)
        pretended.computed, propagated_step.loss_differences = counting, watched
        zo.estimate(x, y)
    sys.stdout.write(json.dumps(asked))


if __name__ == "__main__":
    main(sys.argv[1])
