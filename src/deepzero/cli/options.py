"""Kinds of options and exit codes that several commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from deepzero.errors import InvalidInputError

DONE = 0
STOPPED = 75
"""Exit code of a run that was stopped early with everything saved (EX_TEMPFAIL of sysexits.h: try again). Under
torchrun, which would take it for a failure and start the processes again, the exit code is 0."""

RECIPES_OWN = "(default: the recipe's)"
Whole = Annotated[int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN)]
Real = Annotated[float | None, arg(metavar="X", help_behavior_hint=RECIPES_OWN)]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Flag = Annotated[FlagCreatePairsOff[bool], arg(help_behavior_hint="")]

Quiet = Annotated[
    FlagCreatePairsOff[bool],
    arg(help_behavior_hint="", help="Print the result, warnings and errors, and nothing else."),
]
Json = Annotated[
    FlagCreatePairsOff[bool],
    arg(help_behavior_hint="", help="Print the result as one JSON object, alone on stdout; all else goes to stderr."),
]

OwnConfig = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help_behavior_hint="",
        help="Take the settings from a run's run.json, or a .json or .toml file of your own, in place of a recipe.",
    ),
]
OwnData = Annotated[
    str | None,
    arg(
        metavar="PATH",
        help_behavior_hint=RECIPES_OWN,
        help="Data of your own (`deepzero data PATH` says what is there), or the name of a set.",
    ),
]
Target = Annotated[
    str | None,
    arg(metavar="COLUMN", help_behavior_hint="", help="With --data: column of a table that holds the classes."),
]
ImageSize = Annotated[
    int | None,
    arg(metavar="N", help_behavior_hint="", help="With --data: height and width to bring images to."),
]
TestPart = Annotated[
    float | None,
    arg(
        metavar="X",
        help_behavior_hint="",
        help="With --data: part of each class to hold out as the test set, where there is none.",
    ),
]
OwnModel = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help_behavior_hint=RECIPES_OWN,
        help="Name of a network, or file.py:Net of your own, which is called with num_classes, input_shape, ...",
    ),
]
Settings = Annotated[
    tuple[str, ...],
    arg(metavar="NAME=VALUE", help_behavior_hint="", help="Arguments of a function of your own."),
]


def require_used(command: object, method: str, used_by: Mapping[str, Sequence[str]]) -> None:
    """Raise if an option was given that a method does not look at.

    Args:
        command: with a field for each setting; None: not given.
        method: that the command runs.
        used_by: setting -> methods that look at it.

    Raises:
        InvalidInputError: it names the option, and the methods that have a use for it.
    """
    for name, methods in used_by.items():
        if getattr(command, name) is not None and method not in methods:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} has no effect on --method {method}; leave it out, or choose one of the "
                f"methods that use it: {', '.join(methods)}"
            )


def seconds_of(minutes: float | None) -> float | None:
    """The limit that ``--max-minutes`` sets, in seconds.

    Raises:
        InvalidInputError: it is no time.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise InvalidInputError(
            f"--max-minutes must be a number above 0, got {minutes:g}; for example --max-minutes 30, or leave it out"
        )
    return None if minutes is None else 60 * minutes
