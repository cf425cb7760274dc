"""Arguments of a function from words of the command line, ``--set name=value``."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""Words for a truth value."""
NUMBERS: dict[type, str] = {int: "a whole number", float: "a number", complex: "a number"}


def settings_of(words: Sequence[str]) -> dict[str, str]:
    """Settings from the words of ``--set name=value``.

    Raises:
        InvalidInputError: a word has another form, or a name comes twice.

    Example:
        >>> settings_of(["depth=3", "name=a=b"])
        {'depth': '3', 'name': 'a=b'}
    """
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidInputError(f"--set takes name=value, got {word!r}; for example --set depth=3")
        if name in settings:
            raise InvalidInputError(
                f"--set {name}=... is given twice ({settings[name]!r} and {value!r}); leave one out"
            )
        settings[name] = value
    return settings


def arguments(function: Any, name: str, settings: Mapping[str, str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    kind = inspect.Parameter
    parameters = inspect.signature(function).parameters
    accepted = {n: p for n, p in parameters.items() if p.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)}
    takes_any = any(p.kind is kind.VAR_KEYWORD for p in parameters.values())
    for setting in settings:
        if setting not in accepted and not takes_any:
            there = f"there are: {', '.join(accepted)}" if accepted else "it has none"
            raise InvalidInputError(f"{name} has no parameter {setting!r}{did_you_mean(setting, accepted)}; {there}")
    missing = [n for n, p in accepted.items() if p.default is kind.empty and n not in settings]
    if missing:
        typed = " ".join(f"--set {n}=VALUE" for n in missing)
        raise InvalidInputError(f"{name} needs {', '.join(missing)}; add {typed}, or give a default")
    hints = _hints(function)
    values = {n: _converted(n, word, hints.get(n), accepted.get(n)) for n, word in settings.items()}
    only = [n for n, p in accepted.items() if p.kind is kind.POSITIONAL_ONLY]
    positional = [values.pop(n, accepted[n].default) for n in only]
    return positional, values


def _hints(function: Any) -> dict[str, Any]:
    inner = function.func if isinstance(function, functools.partial) else function
    try:
        return get_type_hints(inner.__init__ if inspect.isclass(inner) else inner)
    except Exception:  # an annotation that names what is not imported at run time is no reason to refuse a call
        return {}


def _converted(name: str, word: str, hint: Any, parameter: inspect.Parameter | None) -> Any:
    if hint is None and parameter is not None and parameter.default not in (inspect.Parameter.empty, None):
        hint = type(parameter.default)
    try:
        return _read(word, hint)
    except ValueError as error:
        raise InvalidInputError(f"--set {name} takes {error}, got {word!r}") from None


def _read(word: str, hint: Any) -> Any:
    """A value of a type from a word; a ``ValueError`` says what would have fitted."""
    origin = get_origin(hint)
    kind = origin or hint
    if origin in (Union, UnionType):
        return _first(word, get_args(hint))
    if kind in (str, Path):
        return kind(word)
    if kind in NUMBERS:
        return _number(word, kind)
    if kind in (list, tuple, set, frozenset):
        return _collected(word, kind, get_args(hint))
    choices = _choices(hint)
    if choices is not None:
        return _one_of(word, choices)
    value = _literal(word)
    if kind is dict and not isinstance(value, dict):
        raise ValueError("a mapping such as {'a': 1}")
    return value


def _choices(hint: Any) -> dict[str, Any] | None:
    """The values of a type that has few, by their words."""
    if get_origin(hint) is Literal:
        return {str(value): value for value in get_args(hint)}
    if hint is bool:
        return TRUTH
    if hint is NoneType:
        return {"none": None}
    return dict(hint.__members__) if inspect.isclass(hint) and issubclass(hint, Enum) else None


def _one_of(word: str, choices: Mapping[str, Any]) -> Any:
    for name, value in choices.items():
        if word in (name, name.lower()) or (choices is TRUTH and word.lower() == name):
            return value
    if choices is TRUTH:
        raise ValueError("yes or no")
    raise ValueError(f"one of {', '.join(choices)}" if len(choices) > 1 else next(iter(choices)))


def _first(word: str, hints: Iterable[Any]) -> Any:
    """The first of several types that fits; plain text only if nothing else does."""
    expected = []
    for hint in sorted(hints, key=lambda hint: hint in (str, Path)):
        try:
            return _read(word, hint)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _number(word: str, kind: type) -> Any:
    try:
        return kind(word)
    except ValueError:
        raise ValueError(NUMBERS[kind]) from None


def _collected(word: str, kind: type, hints: tuple[Any, ...]) -> Any:
    """Several values, separated by commas."""
    parts = [part.strip().strip("'\"") for part in word.strip().strip("()[]{}").split(",") if part.strip()]
    if kind is tuple and hints and hints[-1] is not Ellipsis:
        if len(parts) != len(hints):
            raise ValueError(f"{len(hints)} values, separated by commas")
        return tuple(_read(part, hint) for part, hint in zip(parts, hints, strict=True))
    try:
        return kind(_read(part, hints[0] if hints else None) for part in parts)
    except ValueError as error:
        raise ValueError(f"{error}, or several of them separated by commas") from None


def _literal(word: str) -> Any:
    """A Python literal, else the word itself."""
    try:
        return ast.literal_eval(word.strip())
    except (ValueError, SyntaxError):
        return word
