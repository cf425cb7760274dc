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
MANY = 18
"""Channels of such a convolution; with as few as 12 it is less work for large images, with 16 not for those of 4x4."""


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
    squares = any(_may_go_by_squares(module) for module in modules)
    rows = has(nn.LayerNorm)  # of tokens: other loops
    return [
        *(["slices", "convolve"] if images else []),
        *(["convolve_by_squares"] if squares else []),
        *(["follow"] if images and squares else []),  # small images are taken at once
        *(["label_losses_across"] if classes and not rows else []),
        *(["relu"] if has(nn.ReLU) and not images else []),  # which have their relus behind batch norms
        *(["label_losses_of_column"] if classes else []),
    ]


def _may_go_by_squares(module: nn.Module) -> bool:
    """True for a 3x3 convolution that goes by Winograd's algorithm unless its images are very small; a guess."""
    if not isinstance(module, nn.Conv2d) or min(module.in_channels, module.out_channels) < MANY:
        return False
    plain = module.stride == module.dilation == (1, 1) and module.groups == 1
    return plain and module.kernel_size == (3, 3)
