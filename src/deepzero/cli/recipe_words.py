"""The word that stands for a recipe: what was probably meant where it names none."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

from torch import nn

from deepzero import data, models
from deepzero.errors import InvalidInputError
from deepzero.recipes import RECIPES


def require_recipe(word: str, command: str, data_word: str | None = None) -> None:
    """Raise if a word names something that a command takes by an option.

    Args:
        word: of the command line, neither a file of Python nor a module.
        command: ``train`` or ``doctor``.
        data_word: what ``--data`` was given.

    Raises:
        InvalidInputError: the message says which option. Other unknown words are left to the catalogue of recipes.
    """
    if word in RECIPES:
        return
    path, typed = Path(word), shlex.quote(word)
    if data_word is not None and Path(f"{data_word} {word}").exists():
        raise InvalidInputError(
            f"{data_word!r} and {word!r} are two words; put a name with a space in quotes: --data '{data_word} {word}'"
        )
    if (path / "run.json").is_file():
        words = f"--resume --out {typed}" if command == "train" else f"--config {typed}/run.json"
        what = "to continue it" if command == "train" else "to examine its settings"
    elif path.suffix in (".json", ".toml"):
        words, what = f"--config {typed}", "settings are named by --config"
    elif Path(f"{word}.py").is_file():
        words, what = f"{typed}.py", "your own file is named with its ending"
    elif word.count(".") and Path(f"{word.rpartition('.')[0].replace('.', '/')}.py").is_file():
        place, _, function = word.rpartition(".")
        words, what = f"{place}:{function}", "a colon stands before the function"
    elif path.exists():
        words, what = f"--data {typed}", "data are named by --data"
    elif word in models.names():
        words, what = f"--model {word}", "a network is named by --model"
    elif word in data.names():
        words, what = f"--data {word}", "data are named by --data"
    else:
        return
    raise InvalidInputError(f"{word} is no recipe; {what}: deepzero {command} {words}")


def require_data_dir_used(data_dir: Path | None, name: str, path: str | None = None) -> None:
    """Raise if ``--data-dir`` was given and changes nothing.

    Args:
        data_dir: as given.
        name: of the data set.
        path: of data of the user's own.
    """
    if data_dir is None:
        return
    if path is not None:
        raise InvalidInputError(f"--data-dir has no effect: the data are at {path}; leave it out")
    if data.NAMED[name].find is None:
        raise InvalidInputError(f"--data-dir has no effect: {name} needs no files; leave it out")


def require_no_network(made: Any, word: str, command: str) -> None:
    """Raise if what a word of the user's own names is a network, which another option takes.

    Args:
        made: a function or class, or what it has returned.
        word: that named it.
        command: ``train`` or ``doctor``.

    Raises:
        InvalidInputError: the message says which option.
    """
    if isinstance(made, nn.Module) or (inspect.isclass(made) and issubclass(made, nn.Module)):
        name = Path(word).name if word.endswith(".py") or ".py:" in word else word
        raise InvalidInputError(
            f"{name} is a network, not a recipe; type deepzero {command} --model {name} --data PATH, or write a "
            "function that returns a dz.Trainer"
        )
