"""Kinds of options and exit codes that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

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
