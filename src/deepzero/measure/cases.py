"""The cases of a benchmark: a network, a batch and a set of coordinates; and samples of the coordinates."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deepzero import models, sparsity, validation
from deepzero.coordinates import Coordinates
from deepzero.measure.image_batches import Batch, digits_batch, image_shape, noise_batch
from deepzero.randomness import derive_seed


@dataclass(frozen=True)
class Case:
    """A named case.

    Attributes:
        name: its name on the command line.
        model: name of the model in :mod:`deepzero.models`.
        data: data set of the batch: ``digits``, or ``noise`` in the shape of CIFAR-10 with random labels.
        sparsity: fraction of the weights left out by Smart-Ratio; 0 for the whole dense gradient.
        seconds: seconds that each side is timed by default.
        options: keywords of the model.
    """

    name: str
    model: str
    data: str
    sparsity: float
    seconds: float
    options: tuple[tuple[str, int], ...] = ()

    @property
    def images(self) -> str:
        """The source of the batch, in words."""
        return IMAGES[self.data]

    def build(self, seed: int) -> nn.Module:
        """The model in train mode."""
        options: dict[str, Any] = dict(self.options)
        return models.build(self.model, seed=seed, **options).train()

    def batch(self, size: int, seed: int) -> Batch:
        """A batch of the case's images."""
        if self.data == "digits":
            return digits_batch(size, seed=seed)
        return noise_batch(size, seed=derive_seed(seed, "images"))


IMAGES = {
    "digits": "scikit-learn's digits, 1x8x8",
    "noise": "standard normal noise, 3x32x32, with random labels",
}


def cnn_case(depth: int, data_name: str, *, name: str | None = None, seconds: float = 40.0) -> Case:
    """The simple CNN at a depth, with its dense gradient, on digits or on noise in the shape of another data set."""
    channels, side = image_shape(data_name)
    options = (("depth", depth), ("in_channels", channels), ("image_size", side))
    data = "digits" if data_name == "digits" else "noise"
    return Case(name or f"cnn of depth {depth}", "simple_cnn", data, 0.0, seconds, options)


_ALL = (
    cnn_case(5, "cifar10", name="cnn"),
    Case("digits", "digits_cnn", "digits", 0.0, 20.0, (("in_channels", 1), ("image_size", 8))),
    Case("resnet20", "resnet20", "noise", 0.9, 80.0),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}
"""Depth-5 CNN and digits network: the whole dense gradient. ResNet-20: coordinates drawn by Smart-Ratio at 90 %."""


@dataclass(frozen=True)
class Problem:
    """A case made concrete: all sides query the same coordinates of the same weights on the same batch.

    Attributes:
        case: the case.
        model: its model in train mode.
        batch: images and labels.
        coordinates: the coordinates that are queried.
        sparsity: fraction of the weights that Smart-Ratio leaves out.
        step_size: of the finite difference.
        seed: of everything that is drawn.
    """

    case: Case
    model: nn.Module
    batch: Batch
    coordinates: Coordinates
    sparsity: float
    step_size: float
    seed: int

    @property
    def queries(self) -> int:
        """Function values of one estimate: the base and one for each coordinate."""
        return 1 + self.coordinates.count

    def on(self, device: torch.device | str) -> Problem:
        """The same problem with model and batch on a device; this one keeps its own."""
        x, y = self.batch
        return replace(self, model=copy.deepcopy(self.model).to(device), batch=(x.to(device), y.to(device)))


def problem(
    name: str | Case, *, batch: int = 128, sparsity: float | None = None, step_size: float = 5e-3, seed: int = 0
) -> Problem:
    """Build a case.

    Args:
        name: one of :data:`CASES`, or a case of one's own.
        batch: images of the batch.
        sparsity: fraction of the weights that Smart-Ratio leaves out; 0 for all coordinates, None for the case's own.
        step_size: of the finite difference.
        seed: of weights, batch and drawn coordinates.

    Raises:
        InvalidInputError: an argument is outside its domain.

    Example:
        >>> problem("digits", batch=4).queries
        4955
    """
    case = name if isinstance(name, Case) else CASES[validation.choice("case", name, CASES)]
    validation.count("batch", batch, minimum=2)
    fraction = case.sparsity if sparsity is None else validation.fraction("sparsity", sparsity)
    step = validation.positive("step_size", step_size, hint="5e-3")
    model = case.build(seed)
    return Problem(case, model, case.batch(batch, seed), _coordinates(model, fraction, seed), fraction, step, seed)


def _coordinates(model: nn.Module, fraction: float, seed: int) -> Coordinates:
    if fraction == 0:
        return Coordinates.dense({name: p.shape for name, p in model.named_parameters()})
    return sparsity.random_coordinates(model, sparsity.smart_ratio(model, fraction), seed=seed)


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
