"""All recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from deepzero.errors import InvalidInputError
from deepzero.recipes.digits_recipes import digits, digits_dense
from deepzero.recipes.image_recipes import cifar10_cnn, cifar10_resnet20, fashion_mnist_cnn
from deepzero.tasks.classification import ClassificationConfig
from deepzero.text import did_you_mean

Config = TypeVar("Config")


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """A named configuration.

    Attributes:
        name: what the command line calls it.
        config: returns the configuration.
        cost: what a run takes, in words.
    """

    name: str
    config: Callable[[], Config]
    cost: str

    @property
    def summary(self) -> str:
        """What it is, in one sentence."""
        return (self.config.__doc__ or "").partition("\n")[0]


_ALL = (
    Recipe("digits", digits, "under 3 minutes on 2 cores"),
    Recipe("digits-dense", digits_dense, "minutes on 2 cores"),
    Recipe("fashion-mnist-cnn", fashion_mnist_cnn, "hours on a CPU"),
    Recipe("cifar10-cnn", cifar10_cnn, "days on a CPU, hours on a GPU; less with --depth 1 to 4"),
    Recipe("cifar10-resnet20", cifar10_resnet20, "days on a GPU"),
)

RECIPES: dict[str, Recipe[ClassificationConfig]] = {recipe.name: recipe for recipe in _ALL}
"""The recipes of `deepzero train`, by name."""


def find(name: str) -> Recipe[ClassificationConfig]:
    """The recipe called ``name``.

    Raises:
        InvalidInputError: there is none; the message names the nearest.

    Example:
        >>> find("digits").config().sparsity.sparsity
        0.9
    """
    return named(name, RECIPES, "recipe")


def named(name: str, recipes: Mapping[str, Recipe[Config]], what: str) -> Recipe[Config]:
    """The one called ``name``, or an error that names the nearest."""
    if name not in recipes:
        raise InvalidInputError(
            f"unknown {what} {name!r}{did_you_mean(name, recipes)}; there are: {', '.join(recipes)}"
        )
    return recipes[name]
