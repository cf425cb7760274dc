"""Models by name, for recipes and the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from deepzero.errors import InvalidInputError
from deepzero.models._checks import require_positive
from deepzero.models.digits_cnn import IMAGE_SIZE, DigitsCNN
from deepzero.models.lenet import LeNet
from deepzero.models.local_mixer import LocalMixer
from deepzero.models.mlp import MLP
from deepzero.models.own_network import own_network
from deepzero.models.resnet import CIFAR_DEPTHS, cifar_resnet, resnet18
from deepzero.models.simple_cnn import SimpleCNN
from deepzero.models.wide_cnn import WideCNN
from deepzero.own import is_own

Builder = Callable[..., nn.Module]


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows.

    >>> names()[:2]
    ('digits_cnn', 'mlp')
    """
    return tuple(_BUILDERS)


def build(
    name: str, *, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, seed: int = 0, **options: object
) -> nn.Module:
    """Build the model called ``name`` for square images; the initial weights are a function of ``seed`` alone.

    The global random state is the same afterwards as before.

    Args:
        name: one of :func:`names`; or ``file.py:Net`` or ``module:Net``, a class or function of one's own, which is
            called with those of the arguments below that it has parameters for.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: height and width of the images, in pixels.
        seed: seed of the initial weights.
        options: further keywords of the model, such as ``depth=3`` of ``"simple_cnn"``.

    Raises:
        InvalidInputError: the name, an option, or its value is not one of the model's; the image is too small for it.

    >>> sum(p.numel() for p in build("resnet20").parameters())
    269722
    >>> sum(p.numel() for p in build("simple_cnn", depth=1, image_size=16).parameters())
    730
    """
    require_known(name)
    require_positive(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    with _seeded(seed):
        if is_own(name):
            known = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
            return own_network(name, known, options)
        try:
            return _BUILDERS[name](num_classes=num_classes, in_channels=in_channels, image_size=image_size, **options)
        except TypeError as error:
            raise InvalidInputError(f"model {name!r} does not take these options: {error}") from error


def require_known(name: str) -> None:
    """Raise :class:`~deepzero.errors.InvalidInputError` unless ``name`` is of a model, or of one's own."""
    if name not in _BUILDERS and not is_own(name):
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        raise InvalidInputError(
            f"unknown model {name!r}{f' (did you mean {near[0]}?)' if near else ''}; choose one of "
            f"{', '.join(names())}, or one of your own as file.py:Net"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from the global CPU generator as if seeded with ``seed``, then put its state back."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _digits_cnn(*, image_size: int, **options: int) -> nn.Module:
    if image_size != IMAGE_SIZE:
        raise InvalidInputError(f"digits_cnn takes {IMAGE_SIZE}x{IMAGE_SIZE} images, got image_size={image_size}")
    return DigitsCNN(**options)


def _mlp(*, image_size: int, in_channels: int, num_classes: int, **options: object) -> nn.Module:
    make: Builder = MLP
    return make(in_channels * image_size**2, num_classes=num_classes, **options)


def _simple_cnn(*, image_size: int, depth: int = 5, **options: int) -> nn.Module:
    model = SimpleCNN(depth=depth, **options)
    if image_size < 2**depth:
        raise InvalidInputError(
            f"simple_cnn of depth {depth} needs images of at least {2**depth}x{2**depth} pixels, got "
            f"image_size={image_size}; choose depth={image_size.bit_length() - 1} or less"
        )
    return model


def _any_size(make: Builder, **options: object) -> nn.Module:
    """Build a model that pools globally: the size of the images is no argument of it."""
    return make(**{name: value for name, value in options.items() if name != "image_size"})


_BUILDERS: dict[str, Builder] = {
    "digits_cnn": _digits_cnn,
    "mlp": _mlp,
    "simple_cnn": _simple_cnn,
    "lenet": LeNet,
    "local_mixer": LocalMixer,
    "resnet18": partial(_any_size, resnet18),
    **{f"resnet{depth}": partial(_any_size, partial(cifar_resnet, depth)) for depth in CIFAR_DEPTHS},
    "wide_cnn": partial(_any_size, WideCNN),
}
