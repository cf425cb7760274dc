"""Named recipes: functions that return a configuration, in one catalogue for each command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean

Config = TypeVar("Config")

COMMANDS = {"train": "classification_recipes", "defend": "defense_recipes", "correct": "correction_recipes"}
"""Module of this package that holds the recipes of a command, as ``RECIPES``; it is imported when it is needed."""


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """A named configuration.

    Attributes:
        name: on the command line.
        config: returns the configuration.
        cost: of a run, in words.
    """

    name: str
    config: Callable[[], Config]
    cost: str

    @property
    def summary(self) -> str:
        """One sentence: the first line of the function's docstring."""
        return (self.config.__doc__ or "").partition("\n")[0]


class Catalogue(dict[str, Recipe[Config]]):
    """Recipes by name.

    Args:
        word: for one of them, in messages.
        recipes: in the order in which they are listed.
    """

    def __init__(self, word: str, *recipes: Recipe[Config]) -> None:
        super().__init__((recipe.name, recipe) for recipe in recipes)
        self._word = word

    def find(self, name: str) -> Recipe[Config]:
        """The recipe called ``name``.

        Raises:
            InvalidInputError: there is none; the message names the nearest.
        """
        if name not in self:
            raise InvalidInputError(
                f"unknown {self._word} {name!r}{did_you_mean(name, self)}; there are: {', '.join(self)}"
            )
        return self[name]


def catalogue_of(command: str) -> Catalogue[Any]:
    """The recipes of a command, one of :data:`COMMANDS`.

    Example:
        >>> list(catalogue_of("correct"))
        ['wake-small', 'wake-tiny', 'wake']
    """
    return cast("Catalogue[Any]", import_module(f"{__package__}.{COMMANDS[command]}").RECIPES)
