"""Words of a command line that are no command, no option or no value: said before the parser sees them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from deepzero.errors import InvalidInputError

HELP = ("-h", "--help")
MEANT = {
    "lr": "learning-rate",
    "rate": "learning-rate",
    "output": "out",
    "out-dir": "out",
    "output-dir": "out",
    "folder": "out",
    "data": "data-dir",
    "dataset": "data-dir",
    "minutes": "max-minutes",
    "time": "max-minutes",
    "gpu": "device",
    "cuda": "device",
    "continue": "resume",
    "random-seed": "seed",
    "mu": "step-size",
    "eps": "step-size",
    "epoch": "epochs",
    "n-epochs": "epochs",
    "num-epochs": "epochs",
    "iterations": "steps",
    "queries": "budget",
    "max-queries": "budget",
    "tensorboard": "logger",
    "wandb": "logger",
    "mlflow": "logger",
    "network": "model",
    "net": "model",
    "seconds": "max-minutes",
    "log": "logger",
}
"""What other programs call an option -> what this one does, where it has it."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: without dashes.
        kinds: types that its value may have; empty for a flag, which takes none.
        choices: the values there are, if they are few.
        many: it takes any number of values.
    """

    name: str
    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()
    many: bool = False


def check(words: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> None:
    """Raise unless the words are a command, its options, and values that these can have.

    What is more than that (a missing positional word, too many of them) is left to the parser.

    Raises:
        InvalidInputError: the message names the word, what was expected, and what was probably meant.
    """
    if not words or words[0] in HELP:
        return
    if words[0] not in commands:
        what = "option" if words[0].startswith("-") else "command"
        guess = _guess(words[0], commands)
        raise InvalidInputError(f"unknown {what} {words[0]!r}{guess}; there are: {', '.join(commands)}")
    name, rest = words[0], list(words[1:])
    if any(word in HELP for word in rest):
        return
    options = options_of(commands[name])
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            continue
        given, equals, value = word.removeprefix("--").partition("=")
        option = _known(given, name, options)
        if not option.kinds:
            continue
        taken = [value] if equals else _values(rest, option)
        if not taken and not option.many:
            raise InvalidInputError(f"--{option.name} needs a value; see `deepzero {name} --help`")
        for one in taken:
            _require_fit(one, option)


def options_of(command: Callable[..., Any]) -> dict[str, Option]:
    """The options of a command by name, in both spellings: ``max-minutes`` and ``max_minutes``."""
    found = {}
    hints = get_type_hints(command, include_extras=True)
    for field in fields(command):  # type: ignore[arg-type]
        kinds, choices, many, positional = _taken_apart(hints[field.name])
        if positional:
            continue
        name = field.name.replace("_", "-")
        is_flag = kinds == (bool,) and field.default is not MISSING
        option = Option(name, () if is_flag else kinds, choices, many)
        found[name] = found[field.name] = option
        if is_flag:
            found[f"no-{name}"] = option
    return found


def _taken_apart(hint: Any) -> tuple[tuple[type, ...], tuple[str, ...], bool, bool]:
    """Types, choices, whether there may be many, and whether it is a positional word."""
    positional = Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())  # type: ignore[attr-defined]
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
        positional = positional or Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())  # type: ignore[attr-defined]
    if get_origin(hint) in (Union, UnionType):
        parts = [_taken_apart(part) for part in get_args(hint) if part is not NoneType]
        kinds = tuple(kind for part in parts for kind in part[0])
        return kinds, tuple(c for part in parts for c in part[1]), any(p[2] for p in parts), positional
    if get_origin(hint) is Literal:
        return (str,), tuple(map(str, get_args(hint))), False, positional
    if get_origin(hint) is tuple:
        kinds, choices, _, _ = _taken_apart(get_args(hint)[0])
        return kinds, choices, True, positional
    return (hint,), (), False, positional


def _known(given: str, command: str, options: Mapping[str, Option]) -> Option:
    if given in options:
        return options[given]
    names = list(dict.fromkeys(option.name for option in options.values()))
    meant = MEANT.get(given.replace("_", "-"))
    guess = f" (did you mean --{meant}?)" if meant in names else _guess(given, names, dashes="--")
    raise InvalidInputError(
        f"deepzero {command} has no option --{given}{guess}; there are: {', '.join(f'--{name}' for name in names)}"
    )


def _values(rest: list[str], option: Option) -> list[str]:
    """The values of an option, which are taken off the words that follow; a negative number is one."""
    taken: list[str] = []
    while rest and (not rest[0].startswith("-") or _fits(rest[0], float)):
        taken.append(rest.pop(0))
        if not option.many:
            break
    return taken


def _require_fit(value: str, option: Option) -> None:
    if option.choices:
        if value not in option.choices:
            guess = _guess(value, option.choices)
            raise InvalidInputError(f"--{option.name} takes one of {', '.join(option.choices)}, got {value!r}{guess}")
        return
    if not any(_fits(value, kind) for kind in option.kinds):
        wanted = "a whole number" if option.kinds == (int,) else "a number"
        raise InvalidInputError(f"--{option.name} takes {wanted}, got {value!r}")


def _fits(value: str, kind: type) -> bool:
    if kind not in (int, float):
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _guess(word: str, known: Iterable[str], dashes: str = "") -> str:
    near = difflib.get_close_matches(word.lstrip("-"), list(known), n=1)
    return f" (did you mean {dashes}{near[0]}?)" if near else ""
