"""Checks of the words of a command line, before the parser sees them: commands, options, values, arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepzero.cli import aliases
from deepzero.cli.signature import Argument, Option, arguments_of, options_of, usage
from deepzero.errors import InvalidInputError
from deepzero.text import did_you_mean

HELP = ("-h", "--help")
AT_WORD = r"(?<![\w./\-'\"])"
"""A place in a text where a word begins that is no part of a path or of quoted text."""
BRACKETS = r"(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))"
"""Text between brackets, with brackets in it."""
TRUTH = ("true", "false", "yes", "no", "on", "off", "1", "0")
NEAR = 0.7
"""Least similarity of a word and the name that was probably meant."""
Commands = Mapping[str, Callable[..., Any]]


def check(words: Sequence[str], commands: Commands) -> None:
    """Raise unless the words are a command, its options, and values that these can have.

    Raises:
        InvalidInputError: the message names the word, what was expected, and what was probably aliases.
    """
    if not words or words[0] in HELP:
        return
    if words[0] not in commands:
        raise InvalidInputError(_no_command(words, commands))
    name, rest, arguments = words[0], list(words[1:]), []
    if any(word in HELP for word in rest):
        return
    options = options_of(commands[name])
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or _fits(word, float):
            arguments.append(word)
            continue
        option, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or option not in options:
            raise InvalidInputError(_no_option(word.partition("=")[0], name, commands))
        if options[option].kinds:
            _require_values([value] if equals else _values(rest, options[option]), options[option], name)
        elif equals or (rest and rest[0].lower() in TRUTH):
            raise InvalidInputError(f"--{option} takes no value, got {value or rest[0]!r}; type --{option} alone")
    _require_arguments(arguments, name, commands[name])


def in_options(message: str, options: Iterable[str]) -> str:
    """A message about arguments of Python's in words of the command line; what stands in brackets is left alone.

    Args:
        message: of an error.
        options: names of options of the command.

    Example:
        >>> in_options("step_size must be above 0, got -1.0; try step_size=5e-3 (not mu=1)", ["step-size", "mu"])
        '--step-size must be above 0, got -1.0; try --step-size 5e-3 (not mu=1)'
    """
    names = {name.replace("-", "_"): name for name in options}
    every, long = (
        "|".join(n for n in sorted(names, key=len, reverse=True) if f(n)) for f in (bool, lambda n: "_" in n)
    )
    if not names:
        return message
    message = re.sub(rf"(^|; )({every})(?= must | takes )", lambda match: f"{match[1]}--{names[match[2]]}", message)
    parts = re.split(BRACKETS, message)
    for k in range(0, len(parts), 2):  # those between brackets
        parts[k] = re.sub(rf"{AT_WORD}({every})=(?=[\w.])", lambda match: f"--{names[match[1]]} ", parts[k])
        if long:
            parts[k] = re.sub(rf"{AT_WORD}({long})(?![\w./=])", lambda match: f"--{names[match[1]]}", parts[k])
    return "".join(parts)


def _no_command(words: Sequence[str], commands: Commands) -> str:
    word = words[0]
    there = f"there are: {', '.join(commands)}"
    if word.startswith("--"):
        name = word.removeprefix("--").partition("=")[0]
        having = [command for command in commands if name in options_of(commands[command])]
        if having:
            return f"the command is missing before {word}; type it first, for example: deepzero {having[0]} {word} ..."
    if word in aliases.COMMANDS:
        return f"unknown command {word!r} (did you mean {aliases.COMMANDS[word]}?); {there}"
    what = "option" if word.startswith("-") else "command"
    if word.endswith(".py"):
        return f"unknown command {word!r}; to train by a file of your own, type deepzero train {shlex.quote(word)}"
    if _is_run(word):
        return (
            f"unknown command {word!r}; to do something with a run, type deepzero report {shlex.quote(word)}, or "
            "predict, evaluate or export in place of report"
        )
    guess = _guess(word.lower(), commands)
    advice = "" if guess else ". The command comes first: deepzero train digits"
    return f"unknown {what} {word!r}{guess}; {there}{advice}"


def _is_run(word: str) -> bool:
    return bool(word) and (Path(word) / "run.json").is_file()


def _no_option(word: str, name: str, commands: Commands) -> str:
    """The message for an option that a command has not."""
    option = word.lstrip("-").replace("_", "-").partition("=")[0]
    options = list(dict.fromkeys(one.name for one in options_of(commands[name]).values()))
    arguments = {argument.name: argument for argument in arguments_of(commands[name])}
    is_letter = not word.startswith("--")
    problem = f"deepzero {name} has no option {word}"
    there = f"there are: {', '.join(f'--{one}' for one in options)}"
    alias = (aliases.LETTERS if is_letter else aliases.OPTIONS).get(option)
    if alias in options:
        return f"{problem} (did you mean --{alias}?); see `deepzero {name} --help`"
    argument = arguments.get(aliases.ARGUMENTS.get(option, option)) or next(
        (one for one in arguments.values() if one.shown.lower() == option), None
    )
    if argument is not None:
        return f"{problem}; {argument.shown} is typed without a name: {usage(name, commands[name])}"
    guess = "" if is_letter else _guess(option, options, dashes="--")
    having = [] if guess or is_letter else [c for c in commands if option in options_of(commands[c])]
    elsewhere = f" ({', '.join(having)} {'has' if len(having) == 1 else 'have'} it)" if having else ""
    return f"{problem}{guess}; see `deepzero {name} --help`" if guess else f"{problem}{elsewhere}; {there}"


def _require_arguments(words: Sequence[str], name: str, command: Callable[..., Any]) -> None:
    """Raise unless the arguments are as many as the command takes, and those it knows."""
    rest = list(words)
    for place in arguments_of(command):
        own = rest if place.many else rest[:1]
        if not own and place.needed:
            raise InvalidInputError(f"{place.shown} is missing; type {usage(name, command)}{_one_of(place)}")
        for word in own:
            if place.choices and word not in place.choices:
                guess = _guess(Path(word).name.lower(), place.choices)
                raise InvalidInputError(f"deepzero {name} takes one of {', '.join(place.choices)}, got {word!r}{guess}")
        rest = rest[len(own) :]
    if rest:
        raise InvalidInputError(_too_many(words, rest, name, command))


def _one_of(place: Argument) -> str:
    return f", where {place.shown} is one of {', '.join(place.choices)}" if place.choices else ""


def _too_many(words: Sequence[str], rest: Sequence[str], name: str, command: Callable[..., Any]) -> str:
    form = usage(name, command)
    whole = " ".join(words[len(words) - len(rest) - 1 :])
    if Path(whole).exists() and whole != rest[0]:
        return f"{whole!r} has a space in its name; put it in quotes: {shlex.quote(whole)}"
    option, equals, value = rest[0].partition("=")
    if equals and option.replace("-", "_") in options_of(command):
        typed = shlex.join([f"--{option.replace('_', '-')}", value])
        return f"{rest[0]!r} is no word of deepzero {name}; settings are options: type {typed}"
    many = f"{rest[0]!r} is one word too many; type {form}"
    if (Path(rest[0])).exists() and "data" in options_of(command):
        return f"{many}, and data by --data {shlex.quote(rest[0])}"
    return many if len(options_of(command)) < 6 else f"{many}, and its options (see `deepzero {name} --help`)"


def _values(rest: list[str], option: Option) -> list[str]:
    """The values of an option, which are taken off the words that follow; a negative number is one."""
    values: list[str] = []
    while rest and (not rest[0].startswith("-") or _fits(rest[0], float)):
        values.append(rest.pop(0))
        if not option.many:
            break
    return values


def _require_values(values: Sequence[str], option: Option, command: str) -> None:
    if not values:
        raise InvalidInputError(f"--{option.name} needs a value{_example(option)}; see `deepzero {command} --help`")
    for value in values:
        _require_fit(value, option)


def _require_fit(value: str, option: Option) -> None:
    if option.choices:
        if value not in option.choices:
            guess = _guess(value.lower(), option.choices, cutoff=0.6)
            raise InvalidInputError(f"--{option.name} takes one of {', '.join(option.choices)}, got {value!r}{guess}")
        return
    if not any(_fits(value, kind) for kind in option.kinds):
        expected = "a whole number" if option.kinds == (int,) else "a number"
        retyped = _retyped(value, option)
        advice = f"; type --{option.name} {retyped}" if retyped else _example(option)
        raise InvalidInputError(f"--{option.name} takes {expected}, got {value!r}{advice}")


def _retyped(value: str, option: Option) -> str | None:
    """A number in the form that is understood, if it is one in another form: 90%, 0,1 or 1e6."""
    kind = option.kinds[0]
    parts = value.split(",")
    if option.many and len(parts) > 1 and all(_fits(part, kind) for part in parts):
        return " ".join(parts)
    text = value.replace(",", ".") if value.count(",") == 1 else value
    if text.endswith("%") and _fits(text[:-1], float):
        text = f"{float(text[:-1]) / 100:g}"
    if kind is int and _fits(text, float) and float(text).is_integer():
        text = str(int(float(text)))
    return text if text != value and _fits(text, kind) else None


def _example(option: Option) -> str:
    """A remark with a number to type; empty for other values."""
    if option.kinds not in ((int,), (float,)):
        return ""
    if option.default and not isinstance(option.default, tuple) and isinstance(option.default, int | float):
        return f", for example --{option.name} {option.default:g}"
    return f", for example --{option.name} {10 if option.kinds == (int,) else 0.5}"


def _fits(value: str, kind: type) -> bool:
    if kind not in (int, float):
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _guess(word: str, known: Iterable[str], dashes: str = "", cutoff: float = NEAR) -> str:
    return did_you_mean(word.lstrip("-"), known, shown=lambda name: dashes + name, cutoff=cutoff)
