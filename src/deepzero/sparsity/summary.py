"""How many coordinates each parameter keeps, for people to read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from deepzero.coordinates import Coordinates
from deepzero.objective import BlackBox
from deepzero.sparsity.selection import trainable


@dataclass(frozen=True)
class LayerCount:
    """Coordinates kept of one parameter."""

    name: str
    kept: int
    size: int


@dataclass(frozen=True)
class Summary:
    """Coordinates kept of every trainable parameter; ``str()`` gives a table."""

    layers: tuple[LayerCount, ...]

    @property
    def kept(self) -> int:
        """All coordinates kept: the queries a step needs beside the base (with a forward stencil)."""
        return sum(layer.kept for layer in self.layers)

    @property
    def size(self) -> int:
        """All coordinates there are."""
        return sum(layer.size for layer in self.layers)

    def __str__(self) -> str:
        rows = [*self.layers, LayerCount("total", self.kept, self.size)]
        width = max(len(row.name) for row in rows)
        lines = (f"{row.name:<{width}} {row.kept:>11,} of {row.size:>11,} {row.kept / row.size:>7.2%}" for row in rows)
        return "\n".join(lines)


def summarize(model: nn.Module | BlackBox, coordinates: Coordinates) -> Summary:
    """Count the coordinates kept of each trainable parameter.

    Raises:
        InvalidInputError: the coordinates do not fit the model.

    Example:
        >>> import torch
        >>> print(summarize(nn.Linear(4, 2), Coordinates({"weight": torch.tensor([0, 5])})))
        weight           2 of           8  25.00%
        bias             0 of           2   0.00%
        total            2 of          10  20.00%
    """
    parameters = trainable(model)
    coordinates.check_fits(parameters)
    return Summary(
        tuple(
            LayerCount(name, coordinates[name].numel() if name in coordinates else 0, p.numel())
            for name, p in parameters.items()
        )
    )
