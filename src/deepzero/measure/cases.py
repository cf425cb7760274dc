"""What is measured: a network, a batch and a set of coordinates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepzero import data, models, sparsity, validation
from deepzero.coordinates import Coordinates
from deepzero.errors import InvalidInputError
from deepzero.randomness import derive_seed

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A named case.

    Attributes:
        name: what the command line calls it.
        model: name of the model, built with its default options.
        images: where the batch comes from, in words.
        batch: makes a batch from its size and a seed.
        sparsity: fraction of the weights left out by Smart-Ratio; 0 for the whole dense gradient.
        seconds: how long each side is timed by default.
        options: keywords of the model.
    """

    name: str
    model: str
    images: str
    batch: Callable[[int, int], Batch]
    sparsity: float
    seconds: float
    options: tuple[tuple[str, int], ...] = ()

    def build(self, seed: int) -> nn.Module:
        """The model in train mode."""
        options: dict[str, Any] = dict(self.options)
        return models.build(self.model, seed=seed, **options).train()


@dataclass(frozen=True)
class Problem:
    """A case made concrete: both sides query the same coordinates of the same weights on the same batch."""

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

    def on(self, device: torch.device) -> Problem:
        """The same problem with model and batch on a device; this one keeps its own."""
        x, y = self.batch
        return replace(self, model=copy.deepcopy(self.model).to(device), batch=(x.to(device), y.to(device)))


def digits_batch(size: int, seed: int) -> Batch:
    """Images of scikit-learn's digits."""
    train = data.load("digits", validation=0.0).train
    if size > len(train):
        raise InvalidInputError(f"digits has {len(train)} training images, too few for batch={size}")
    return data.BatchLoader(train, batch_size=size, shuffle=True, seed=seed).batch(0, 0)


def noise_batch(size: int, seed: int) -> Batch:
    """Standard normal noise of 3x32x32 with random labels."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "images"))
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(0, 10, (size,), generator=generator)


NOISE = "standard normal noise, 3x32x32, with random labels"

_ALL = (
    Case("cnn", "simple_cnn", NOISE, noise_batch, 0.0, 40.0, (("depth", 5),)),
    Case(
        "digits",
        "digits_cnn",
        "scikit-learn's digits, 1x8x8",
        digits_batch,
        0.0,
        20.0,
        (("in_channels", 1), ("image_size", 8)),
    ),
    Case("resnet20", "resnet20", NOISE, noise_batch, 0.9, 80.0),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}
"""Depth-5 CNN and digits network: the whole dense gradient. ResNet-20: coordinates drawn by Smart-Ratio at 90 %."""


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
