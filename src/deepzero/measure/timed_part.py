"""Which part of the coordinates is timed when the whole would take too long."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import torch

from deepzero.coordinates import Coordinates
from deepzero.randomness import derive_seed


def shuffled(coordinates: Coordinates, seed: int) -> Iterator[tuple[str, int]]:
    """All coordinates in random order, again and again: any stretch is drawn in the proportion of the parameters."""
    pairs = [(name, int(index)) for name, indices in coordinates.items() for index in indices]
    generator = torch.Generator().manual_seed(derive_seed(seed, "shuffled"))
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return itertools.cycle(pairs[k] for k in order)


def in_full_chunks(
    coordinates: Coordinates, chunks: Mapping[str, int], fraction: float, seed: int, *, least: int = 1
) -> Coordinates:
    """A random part of the chunks in which an estimate propagates each parameter's coordinates.

    Args:
        coordinates: the whole set.
        chunks: coordinates of a full chunk, by parameter.
        fraction: the part to take, in (0, 1]; 1 takes everything.
        seed: of the draw.
        least: chunks to take of each parameter at least, as far as it has them.

    Example:
        >>> whole = Coordinates({"weight": torch.arange(100), "bias": torch.arange(3)})
        >>> part = in_full_chunks(whole, {"weight": 8, "bias": 8}, 0.25, seed=0)
        >>> part["weight"].numel(), part["bias"].numel()
        (24, 3)
    """
    if fraction >= 1:
        return coordinates
    chosen = {}
    for name, indices in coordinates.items():
        pieces = [indices[start : start + chunks[name]] for start in range(0, len(indices), chunks[name])]
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        order = torch.randperm(len(pieces), generator=generator).tolist()
        chosen[name] = torch.cat([pieces[k] for k in order[: max(least, round(fraction * len(pieces)))]])
    return Coordinates(chosen)


def one_of_each(coordinates: Coordinates, limit: int, seed: int) -> Coordinates:
    """One random coordinate of each parameter, of at most ``limit`` parameters spread over the network."""
    names = coordinates.names
    stride = max(1, -(-len(names) // limit))
    return some_of_each(coordinates, dict.fromkeys(names[::stride], 1), seed)


def some_of_each(coordinates: Coordinates, counts: Mapping[str, int], seed: int) -> Coordinates:
    """``counts[name]`` random coordinates of each parameter that is counted, or all that it has."""
    chosen = {}
    for name, count in counts.items():
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        chosen[name] = coordinates[name][torch.randperm(len(coordinates[name]), generator=generator)[:count]]
    return Coordinates(chosen)
