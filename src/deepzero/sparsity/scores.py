"""Scores that need no query: magnitude and chance. What ranks weights is a ``dict[str, Tensor]`` shaped like them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from deepzero.objective import BlackBox
from deepzero.randomness import derive_seed
from deepzero.sparsity.selection import trainable


def magnitude(model: nn.Module | BlackBox) -> dict[str, Float[Tensor, " ..."]]:
    """:math:`S = |\\theta|` of every trainable parameter.

    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
        >>> magnitude(layer)["weight"].tolist()
        [[3.0, 2.0]]
    """
    return {name: p.abs() for name, p in trainable(model).items()}


def random(model: nn.Module | BlackBox, *, seed: int = 0) -> dict[str, Float64[Tensor, " ..."]]:
    """:math:`S \\sim U[0, 1)`, independent: ranked globally, these keep a uniformly random set of weights.

    A pure function of ``seed`` and the parameters' names and shapes, the same on every device.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> torch.equal(random(layer, seed=3)["weight"], random(layer, seed=3)["weight"])
        True
    """
    scores = {}
    for name, p in trainable(model).items():
        generator = torch.Generator().manual_seed(derive_seed(seed, "random scores", name))
        scores[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64)
    return scores
