"""Options and exit codes that several commands share."""

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
Epochs = Annotated[
    int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN, help="Passes over the training images.")
]
Sparsity = Annotated[
    float | None,
    arg(
        metavar="X",
        help_behavior_hint=RECIPES_OWN,
        help="Part of the weights that is not queried at a step, in [0, 1).",
    ),
]
StepSize = Annotated[
    float | None, arg(metavar="X", help_behavior_hint=RECIPES_OWN, help="Step of the finite difference.")
]
Queries = Annotated[
    int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN, help="Random directions a step, for rge.")
]
LearningRate = Annotated[float | None, arg(metavar="X", help_behavior_hint=RECIPES_OWN, help="Peak learning rate.")]
BatchSize = Annotated[int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN, help="Images of a batch.")]
Depth = Annotated[
    int | None,
    arg(
        metavar="N",
        help_behavior_hint=RECIPES_OWN,
        help="Depth of the network, for recipes whose network has one.",
    ),
]
Limit = Annotated[
    int | None,
    arg(metavar="N", help_behavior_hint=RECIPES_OWN, help="Use only N training images."),
]
Seed = Annotated[int | None, arg(metavar="N", help_behavior_hint=RECIPES_OWN, help="Seed of everything that is drawn.")]
DataDir = Annotated[
    Path | None,
    arg(
        metavar="FOLDER",
        help_behavior_hint="",
        help="Folder of the data set (default: $DEEPZERO_DATA/<name>, else data/<name>).",
    ),
]
Device = Annotated[str, arg(help="Device to compute on: cpu, cuda or cuda:<number>.")]
Resume = Annotated[
    FlagCreatePairsOff[bool],
    arg(help_behavior_hint="", help="Continue the run in --out; settings need not be repeated."),
]
MaxMinutes = Annotated[
    float | None,
    arg(
        metavar="X",
        help_behavior_hint="(default: no limit)",
        help="Save and exit with code 75 after that many minutes.",
    ),
]


def require_used(command: object, method: str, used_by: Mapping[str, Sequence[str]]) -> None:
    """Raise if an option was given that a method does not use.

    Args:
        command: with a field for each setting; None: not given.
        method: that the command runs.
        used_by: setting -> methods that use it.

    Raises:
        InvalidInputError: it names the option, and the methods that have a use for it.
    """
    for name, methods in used_by.items():
        if getattr(command, name) is not None and method not in methods:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} has no effect on --method {method}; leave it out, or choose one of the "
                f"methods that use it: {', '.join(methods)}"
            )


def require_folder_to_resume(resume: bool, out: Path | None) -> None:
    """Raise if a run is to be resumed and its folder is not named.

    Raises:
        InvalidInputError: the message says what to type.
    """
    if resume and out is None:
        raise InvalidInputError("name the folder of the run to resume, for example --resume --out runs/...")


def seconds_of(minutes: float | None) -> float | None:
    """The limit that ``--max-minutes`` sets, in seconds.

    Raises:
        InvalidInputError: it is no time.
    """
    from deepzero.validation import positive  # noqa: PLC0415 - with PyTorch

    return None if minutes is None else 60 * positive("--max-minutes", minutes, hint="30")
