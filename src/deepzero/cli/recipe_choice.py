"""The configuration that the words of a command choose: a recipe, a file of settings, data, a network, own code."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from deepzero import data, models
from deepzero.errors import InvalidInputError
from deepzero.recipes import RECIPES, config_file, data_config, find, own_config, with_data
from deepzero.recipes.run_starts import Base
from deepzero.tasks.classification.classification_config import ESTIMATORS, ClassificationConfig, ModelConfig
from deepzero.tasks.task_data import DataReader


def base_of(command: Any, own: tuple[str, ClassificationConfig] | None, reader: DataReader) -> Base | None:
    """The configuration that a command starts from, before single settings are changed; None for the default one.

    Args:
        command: with the options ``recipe``, ``config``, ``data``, ``target``, ``image_size``, ``test``, ``limit``,
            ``model`` and ``depth``.
        own: a configuration of the user's own, and what to call it.
        reader: reads the data, where a network is to be found for them.
    """
    named = [name for name in ("recipe", "config") if getattr(command, name) is not None]
    if len(named) == 2:
        raise InvalidInputError(f"give a recipe or --config, not both; got {command.recipe} and {command.config}")
    for name in ("target", "image_size", "test"):
        if getattr(command, name) is not None and command.data is None:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} has no effect without --data; leave it out, or add --data PATH"
            )
    if not named and command.data is None and command.model is None:
        return None
    if command.recipe is not None and own is None:
        require_recipe(command.recipe, type(command).__name__.lower(), command.data)

    def made() -> tuple[str, ClassificationConfig]:
        name, config = _before(command, own)
        model = None if command.model is None else _network(command)
        if command.data is not None:
            images = data_config(
                command.data,
                target=command.target,
                image_size=command.image_size,
                test=command.test,
                limit=command.limit,
            )
            require_data_dir_used(command.data_dir, images.name, images.path)
            name = Path(command.data).stem if config is None else name
            config = own_config(images, model, reader=reader) if config is None else with_data(config, images)
        elif config is None:
            name, config = "digits", find("digits").config()
        return name, config if model is None else replace(config, model=model)

    return made


def _before(command: Any, own: tuple[str, ClassificationConfig] | None) -> tuple[str, ClassificationConfig | None]:
    if own is not None:
        return own
    if command.config is not None:
        return config_file(command.config)
    return (command.recipe, find(command.recipe).config()) if command.recipe is not None else ("own", None)


def _network(command: Any) -> ModelConfig:
    return ModelConfig(name=command.model, options={} if command.depth is None else {"depth": command.depth})


def require_recipe(word: str, command: str, data_word: str | None = None) -> None:
    """Raise if a word names something that a command takes by an option.

    Args:
        word: of the command line, neither a file of Python nor a module.
        command: ``train`` or ``doctor``.
        data_word: the value of ``--data``.

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


def require_effect(command: Any, config: ClassificationConfig) -> None:
    """Raise if an option that was given changes nothing.

    Raises:
        InvalidInputError: naming the option, and why it has no effect.
    """
    method = config.estimator.method
    require_data_dir_used(command.data_dir, config.data.name, config.data.path)
    if command.queries is not None and method != "rge":
        raise InvalidInputError(
            f"--queries has no effect: it is the number of random directions, and the estimator is {method}; add "
            "--estimator rge, or leave it out"
        )
    if command.step_size is not None and method not in ESTIMATORS:
        raise InvalidInputError(f"--step-size has no effect: {method} takes no finite differences; leave it out")
