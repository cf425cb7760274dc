"""The compiled loops that a network is going to need, as far as its modules and its loss tell before it is exported."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = {torch.float32: "float32", torch.float64: "float64"}
"""Precisions that there are loops for."""
CHECKED = "float64"
"""The precision in which rules are checked, before anything else is computed by them."""


def compile_ahead(model: nn.Module, loss: Any) -> None:
    """Let a second process compile loops that a network on a CPU is going to need, if none are kept from before.

    To be called as long as possible before they are needed; of no effect a second time.

    Args:
        model: the network.
        loss: of outputs and targets; None if it is not known.
    """
    names, parameters = expected_loops(model, loss), list(model.parameters())
    if not names or any(p.device.type != "cpu" for p in parameters):
        return
    from deepzero.graph.cpu import second_compiler  # noqa: PLC0415 - with numba, which many networks need not

    dtypes = dict.fromkeys([CHECKED, *(DTYPES[p.dtype] for p in parameters if p.dtype in DTYPES)])
    second_compiler.start(names, dtypes)


def expected_loops(model: nn.Module, loss: Any) -> list[str]:
    """Names of loops, in the order in which they are needed; a guess, and of what takes long alone."""
    modules = list(model.modules())

    def has(*kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in modules)

    classes = loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)
    images = has(nn.Conv2d) and has(nn.BatchNorm2d)
    rows = has(nn.LayerNorm)  # of tokens: other loops
    return [
        *(["slices", "convolve", "follow"] if images else []),
        *(["label_losses_across"] if classes and not rows else []),
        *(["relu"] if has(nn.ReLU) and not images else []),  # which have their relus behind batch norms
        *(["label_losses_of_column"] if classes else []),
    ]
