"""The signature of a command: its options, and its arguments, which stand without a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional

POSITIONAL = Positional[int].__metadata__[0]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        name: without dashes.
        kinds: types that its value may have; empty for a flag, which takes none.
        choices: the values there are, if they are few.
        many: it takes any number of values.
        default: its value if it is not given.
    """

    name: str
    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()
    many: bool = False
    default: Any = None


@dataclass(frozen=True)
class Argument:
    """A word without a name (a positional argument).

    Attributes:
        name: of the field.
        shown: its name in the help, such as ``RUN``.
        choices: the words there are, if they are few.
        many: any number of words may stand here.
        needed: there must be one.
    """

    name: str
    shown: str
    choices: tuple[str, ...] = ()
    many: bool = False
    needed: bool = False


@dataclass(frozen=True)
class _Hint:
    """A type, taken apart."""

    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()
    many: bool = False
    positional: bool = False
    metavar: str | None = None


def options_of(command: Callable[..., Any]) -> dict[str, Option]:
    """The options of a command by name, in both spellings: ``max-minutes`` and ``max_minutes``."""
    found = {}
    for field, hint in _fields(command):
        if hint.positional:
            continue
        name = field.name.replace("_", "-")
        is_flag = hint.kinds == (bool,) and field.default is not MISSING
        option = Option(name, () if is_flag else hint.kinds, hint.choices, hint.many, field.default)
        found[name] = found[field.name] = option
        if is_flag:
            found[f"no-{name}"] = option
    return found


def arguments_of(command: Callable[..., Any]) -> list[Argument]:
    """The arguments of a command, in their order."""
    return [
        Argument(
            field.name,
            (hint.metavar or field.name.upper()).partition(" ")[0],
            hint.choices,
            hint.many,
            field.default is MISSING,
        )
        for field, hint in _fields(command)
        if hint.positional
    ]


def usage(name: str, command: Callable[..., Any]) -> str:
    """The command line of a command, without its options.

    Example:
        >>> from deepzero.cli.finished_run import Predict
        >>> usage("predict", Predict)
        'deepzero predict RUN INPUT ...'
    """
    shown = [f"{one.shown} ..." if one.many else one.shown for one in arguments_of(command)]
    return " ".join(["deepzero", name, *shown])


def _fields(command: Callable[..., Any]) -> list[tuple[Any, _Hint]]:
    hints = get_type_hints(command, include_extras=True)
    return [(field, _taken_apart(hints[field.name])) for field in fields(command)]  # type: ignore[arg-type]


def _taken_apart(hint: Any) -> _Hint:
    positional, metavar = False, None
    while hasattr(hint, "__metadata__"):
        positional = positional or POSITIONAL in hint.__metadata__
        metavar = next((m.metavar for m in hint.__metadata__ if getattr(m, "metavar", None)), metavar)
        hint = hint.__origin__
    if get_origin(hint) in (Union, UnionType):
        parts = [_taken_apart(part) for part in get_args(hint) if part is not NoneType]
        kinds = tuple(kind for part in parts for kind in part.kinds)
        choices = tuple(choice for part in parts for choice in part.choices)
        metavar = metavar or next((part.metavar for part in parts if part.metavar), None)
        return _Hint(kinds, choices, any(part.many for part in parts), positional, metavar)
    if get_origin(hint) is Literal:
        return _Hint((str,), tuple(map(str, get_args(hint))), False, positional, metavar)
    if get_origin(hint) is tuple:
        inner = _taken_apart(get_args(hint)[0])
        return _Hint(inner.kinds, inner.choices, True, positional, metavar)
    return _Hint((hint,), (), False, positional, metavar)
