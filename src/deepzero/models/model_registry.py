"""Models by name, for recipes and the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.models.digits_cnn import IMAGE_SIZE, DigitsCNN
from deepzero.models.lenet import LeNet
from deepzero.models.local_mixer import LocalMixer
from deepzero.models.mlp import MLP
from deepzero.models.own_network import own_network, require_fit
from deepzero.models.resnet import CIFAR_DEPTHS, cifar_resnet, resnet18
from deepzero.models.simple_cnn import SimpleCNN
from deepzero.models.wide_cnn import WideCNN
from deepzero.own import is_own
from deepzero.text import did_you_mean

Builder = Callable[..., nn.Module]
Shape = tuple[int, ...]

TABLE_MODELS = ("mlp",)
"""Models that take rows of a table, too."""


def names() -> tuple[str, ...]:
    """The names that :func:`build` knows.

    >>> names()[:2]
    ('digits_cnn', 'mlp')
    """
    return tuple(_BUILDERS)


def build(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    **options: object,
) -> nn.Module:
    """Build the model called ``name``; the initial weights are a function of ``seed`` alone.

    The global random state is the same afterwards as before.

    Args:
        name: one of :func:`names`; or ``file.py:Net`` or ``module:Net``, a class or function of one's own, which is
            called with those of ``num_classes``, ``input_shape``, ``in_features`` (the product of the shape),
            ``in_channels`` and ``image_size`` (of square images) that it has parameters for.
        num_classes: number of logits.
        in_channels: channels of the images.
        image_size: height and width of square images, in pixels.
        input_shape: in place of these two, the shape of one input: channels, height and width of an image, or the
            number of columns of a table, which ``"mlp"`` alone takes.
        seed: seed of the initial weights.
        options: further keywords of the model, such as ``depth=3`` of ``"simple_cnn"``.

    Raises:
        InvalidInputError: the name, an option, or its value is not one of the model's; the image is too small for it,
            or not square where it must be; the model takes no tables; a network of one's own does not take inputs of
            the ``input_shape``, or gives something else than a number for each class.

    >>> sum(p.numel() for p in build("resnet20").parameters())
    269722
    >>> sum(p.numel() for p in build("simple_cnn", depth=1, image_size=16).parameters())
    730
    >>> build("mlp", input_shape=(4,), num_classes=3, hidden=())(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """
    require_known(name)
    shape = (in_channels, image_size, image_size) if input_shape is None else tuple(input_shape)
    validation.counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    if is_own(name):
        with _seeded(seed):
            model = own_network(name, {"num_classes": num_classes, **_known_of(shape)}, options)
            if input_shape is not None:
                require_fit(model, name, shape, num_classes)
            return model
    _require_shape(name, shape)
    with _seeded(seed):
        try:
            return _BUILDERS[name](num_classes=num_classes, input_shape=shape, **options)
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            problem = (
                f"has no {unknown[1]}; leave {unknown[1]} out" if unknown else f"does not take these options: {error}"
            )
            raise InvalidInputError(f"the model {name!r} {problem}") from error


def require_known(name: str) -> None:
    """Raise :class:`~deepzero.errors.InvalidInputError` unless ``name`` is of a model, or of one's own."""
    if name not in _BUILDERS and not is_own(name):
        raise InvalidInputError(
            f"unknown model {name!r}{did_you_mean(name, _BUILDERS)}; choose one of "
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


def _known_of(shape: Shape) -> dict[str, object]:
    """The arguments that a network of one's own may take, from the shape of its inputs."""
    known: dict[str, object] = {"input_shape": shape, "in_features": math.prod(shape)}
    if len(shape) == 3:
        known["in_channels"] = shape[0]
        if shape[1] == shape[2]:
            known["image_size"] = shape[1]
    return known


def _require_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 3:
        validation.counts(in_channels=shape[0], image_height=shape[1], image_width=shape[2])
    elif len(shape) == 1 and name in TABLE_MODELS:
        validation.counts(columns=shape[0])
    else:
        got = f"rows of {shape[0]} columns" if len(shape) == 1 else f"inputs of shape {list(shape)}"
        raise InvalidInputError(
            f"the model {name!r} takes images [channels, height, width], got {got}; "
            f"a model for tables is {', '.join(TABLE_MODELS)}"
        )


def _digits_cnn(*, input_shape: Shape, **options: int) -> nn.Module:
    channels, height, width = input_shape
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise InvalidInputError(f"digits_cnn takes {IMAGE_SIZE}x{IMAGE_SIZE} images, got {_size(height, width)}")
    return DigitsCNN(in_channels=channels, **options)


def _mlp(*, input_shape: Shape, **options: object) -> nn.Module:
    make: Builder = MLP
    return make(math.prod(input_shape), **options)


def _simple_cnn(*, input_shape: Shape, depth: int = 5, **options: int) -> nn.Module:
    channels, height, width = input_shape
    model = SimpleCNN(depth=depth, in_channels=channels, **options)
    least = min(height, width)
    if least < 2**depth:
        raise InvalidInputError(
            f"simple_cnn of depth {depth} needs images of at least {2**depth}x{2**depth} pixels, got "
            f"{_size(height, width)}; choose depth={least.bit_length() - 1} or less"
        )
    return model


def _square(make: Builder, *, input_shape: Shape, **options: object) -> nn.Module:
    """Build a model whose layers depend on the size of the images."""
    channels, height, width = input_shape
    if height != width:
        raise InvalidInputError(
            f"{make.__name__} takes square images, got {_size(height, width)}; choose an image_size, or another model"
        )
    return make(in_channels=channels, image_size=height, **options)


def _any_size(make: Builder, *, input_shape: Shape, **options: object) -> nn.Module:
    """Build a model that pools globally: the size of the images is no argument of it."""
    return make(in_channels=input_shape[0], **options)


def _size(height: int, width: int) -> str:
    return f"image_size={height}" if height == width else f"{height}x{width} pixels"


_BUILDERS: dict[str, Builder] = {
    "digits_cnn": _digits_cnn,
    "mlp": _mlp,
    "simple_cnn": _simple_cnn,
    "lenet": partial(_square, LeNet),
    "local_mixer": partial(_square, LocalMixer),
    "resnet18": partial(_any_size, resnet18),
    **{f"resnet{depth}": partial(_any_size, partial(cifar_resnet, depth)) for depth in CIFAR_DEPTHS},
    "wide_cnn": partial(_any_size, WideCNN),
}
