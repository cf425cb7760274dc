"""The cases of a benchmark: a network, a batch and a set of coordinates; and samples of the coordinates."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from deepzero import models, sparsity, validation
from deepzero.coordinates import Coordinates
from deepzero.measure.drawn_batches import Batch, digits_batch, image_shape, noise_batch, token_batch
from deepzero.randomness import derive_seed, seeded_scope

CPU = torch.device("cpu")
BLOCK = 1024
"""Coordinates of a random order that become Python numbers at a time: a million take a second."""


class Source(NamedTuple):
    """The source of batches.

    Attributes:
        words: the source, in words.
        draw: a batch, from its size and a seed.
    """

    words: str
    draw: Callable[[int, int], Batch]

    @classmethod
    def noise(cls, channels: int, side: int) -> Source:
        """Noise in place of images.

        >>> Source.noise(1, 28).words
        'standard normal noise, 1x28x28, with random labels'
        """
        words = f"standard normal noise, {channels}x{side}x{side}, with random labels"
        return cls(words, lambda size, seed: noise_batch(size, channels, side, seed=derive_seed(seed, "images")))


DIGITS = Source("scikit-learn's digits, 1x8x8", lambda size, seed: digits_batch(size, seed=seed))


@dataclass(frozen=True)
class Case:
    """A named case.

    Attributes:
        name: its name on the command line.
        model: name of the model in :mod:`deepzero.models`.
        make: the model, from a seed.
        source: of the batch.
        sparsity: fraction of the weights left out by Smart-Ratio; 0 for the whole dense gradient.
        seconds: seconds that each side is timed by default.
        size: images or sequences of a batch by default.
        options: keywords of the model in the registry, where it is made by it.
    """

    name: str
    model: str
    make: Callable[[int], nn.Module]
    source: Source
    sparsity: float = 0.0
    seconds: float = 40.0
    size: int = 128
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int) -> nn.Module:
        """The model in train mode."""
        return self.make(seed).train()

    def batch(self, size: int, seed: int) -> Batch:
        """A batch of the case."""
        return self.source.draw(size, seed)


def registered_case(
    name: str, model: str, source: Source, *, sparsity: float = 0.0, seconds: float = 40.0, **options: Any
) -> Case:
    """A case of a model that the registry makes with some options."""
    make = partial(models.build, model, **options)
    return Case(name, model, lambda seed: make(seed=seed), source, sparsity, seconds, options=options)


def cnn_case(depth: int, data_name: str, *, name: str | None = None, seconds: float = 40.0) -> Case:
    """The simple CNN at a depth, with its dense gradient, on digits or on noise in the shape of another data set."""
    channels, side = image_shape(data_name)
    source = DIGITS if data_name == "digits" else Source.noise(channels, side)
    size = {"in_channels": channels, "image_size": side}
    return registered_case(name or f"cnn of depth {depth}", "simple_cnn", source, seconds=seconds, depth=depth, **size)


SYMBOLS, CONTEXT = 100, 32
"""Vocabulary and length of the sequences of the transformer cases: characters of a text."""
TEXT = Source(
    f"sequences of {CONTEXT} random symbols out of {SYMBOLS}, after each of which the next is asked for",
    lambda size, seed: token_batch(size, CONTEXT, SYMBOLS, seed=derive_seed(seed, "tokens")),
)


def text_case(name: str, *, width: int, depth: int, size: int, rank: int | None = None, seconds: float = 60.0) -> Case:
    """A GPT on random symbols: the dense gradient, or that of low-rank updates of its attention.

    Args:
        name: of the case.
        width: features of a token; a head has 32 or 64.
        depth: number of blocks.
        size: sequences of a batch.
        rank: of the updates of the query and value projections, beside which all is frozen; None to train everything.
        seconds: that each side is timed by default.
    """

    def make(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(derive_seed(seed, "updates"))
        with seeded_scope(seed, CPU):
            gpt = models.GPT(symbols=SYMBOLS, context=CONTEXT, width=width, heads=4, depth=depth)
            return gpt if rank is None else _trained_a_little(models.adapt_attention(gpt, rank=rank), generator)

    return Case(name, "gpt", make, TEXT, seconds=seconds, size=size)


def _trained_a_little(gpt: models.GPT, generator: torch.Generator) -> models.GPT:
    """Updates that are not zero any more: at zero, one of their two factors has no gradient to compare."""
    for module in gpt.modules():
        if isinstance(module, models.LowRankLinear):
            nn.init.normal_(module.up, std=0.02, generator=generator)
    return gpt


_GREY = {"in_channels": 1}
_ALL = (
    cnn_case(5, "cifar10", name="cnn"),
    cnn_case(1, "cifar10", name="cnn-1", seconds=20.0),
    registered_case("digits", "digits_cnn", DIGITS, seconds=20.0, image_size=8, **_GREY),
    registered_case("resnet20", "resnet20", Source.noise(3, 32), sparsity=0.9, seconds=80.0),
    registered_case("mlp", "mlp", Source.noise(1, 28), image_size=28, hidden=(800, 400), **_GREY),
    text_case("transformer-block", width=128, depth=1, size=16),
    text_case("lora-gpt", width=256, depth=4, size=8, rank=4),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}
"""The cases of ``deepzero bench``.

The whole dense gradient of the CNN of depth 5 and of depth 1, of the digits network, of a perceptron 784-800-400-10 and
of a GPT of one block (width 128, 4 heads, 16 sequences of 32 symbols); ResNet-20 at coordinates drawn by Smart-Ratio
at 90 %; and the low-rank updates (rank 4, of queries and values) of a GPT of 4 blocks of width 256, otherwise frozen.
"""


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
    name: str | Case,
    *,
    batch: int | None = None,
    sparsity: float | None = None,
    step_size: float = 5e-3,
    seed: int = 0,
) -> Problem:
    """Build a case.

    Args:
        name: one of :data:`CASES`, or a case of one's own.
        batch: images or sequences of the batch; None for the case's own size.
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
    size = case.size if batch is None else validation.count("batch", batch, minimum=2)
    fraction = case.sparsity if sparsity is None else validation.fraction("sparsity", sparsity)
    step = validation.positive("step_size", step_size, hint="5e-3")
    model = case.build(seed)
    return Problem(case, model, case.batch(size, seed), _coordinates(model, fraction, seed), fraction, step, seed)


def _coordinates(model: nn.Module, fraction: float, seed: int) -> Coordinates:
    if fraction == 0:
        return Coordinates.dense({name: p.shape for name, p in model.named_parameters() if p.requires_grad})
    return sparsity.random_coordinates(model, sparsity.smart_ratio(model, fraction), seed=seed)


def shuffled(coordinates: Coordinates, seed: int) -> Iterator[tuple[str, int]]:
    """All coordinates in random order, again and again: any stretch is drawn in the proportion of the parameters."""
    names = coordinates.names
    every = torch.cat([coordinates[name] for name in names])
    ends = torch.tensor([len(coordinates[name]) for name in names]).cumsum(0)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(derive_seed(seed, "shuffled")))
    for places in itertools.cycle(torch.split(order, BLOCK)):
        owners = torch.searchsorted(ends, places, right=True).tolist()
        yield from ((names[k], index) for k, index in zip(owners, every[places].tolist(), strict=True))


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
