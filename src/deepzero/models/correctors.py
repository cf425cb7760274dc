"""Networks that correct the state of a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepzero import validation
from deepzero.errors import InvalidInputError

KERNEL = 5


class FlowCorrector(nn.Module):
    """A correction of a staggered velocity field: 5x5 convolutions with ReLU between them, zeros outside.

    ``model_mercury`` of Um et al., "Solver-in-the-Loop" (NeurIPS 2020): with the default widths 2,432 + 51,264 + 3,202
    = 56,898 parameters, weights uniform as in Glorot and Bengio (2010), biases 0. The network sees both components and
    the Reynolds number, each divided by its scale, on all faces but the last row and column, and leaves these as they
    are.

    Shapes: values ``[N, 2, X+1, Y+1]`` and Reynolds numbers ``[N, 1]`` to increments ``[N, 2, X+1, Y+1]``.

    Args:
        widths: channels of the hidden layers.
        scales: of both components and of the Reynolds number; also those of the output.

    Raises:
        InvalidInputError: a width is not a positive integer, or the scales are not three positive numbers.

    >>> sum(p.numel() for p in FlowCorrector().parameters())
    56898
    """

    scales: Tensor

    def __init__(self, *, widths: Sequence[int] = (32, 64), scales: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        for width in widths:
            validation.counts(width=width)
        if len(scales) != 3 or not all(scale > 0 for scale in scales):
            raise InvalidInputError(f"scales must be three positive numbers (v_x, v_y, Reynolds), got {tuple(scales)}")
        super().__init__()
        channels = (3, *widths, 2)
        layers: list[nn.Module] = []
        for inward, outward in pairwise(channels):
            layers += [nn.Conv2d(inward, outward, KERNEL, padding=KERNEL // 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.register_buffer("scales", torch.tensor(tuple(scales), dtype=torch.float32))

    def forward(self, values: Float[Tensor, "n 2 x1 y1"], reynolds: Float[Tensor, "n 1"]) -> Float[Tensor, "n 2 x1 y1"]:
        velocity, number = self.scales[:2, None, None], self.scales[2]
        inner = values[:, :, :-1, :-1] / velocity
        constant = (reynolds / number)[:, :, None, None].expand(-1, 1, *inner.shape[2:])
        found = self.layers(torch.cat([inner, constant], dim=1)) * velocity
        return nn.functional.pad(found, (0, 1, 0, 1))
