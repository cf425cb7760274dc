"""The command line: ``deepzero train``, ``deepzero recipes``, ...; nothing is decided here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from deepzero.errors import MissingPackageError
from deepzero.extras import required_for

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: words of the command line, by default those of this process.
    """
    try:
        with required_for("the command deepzero"):
            from deepzero.cli import entry_point  # noqa: PLC0415 - with tyro, which an extra brings
    except MissingPackageError as missing:
        sys.stderr.write(f"error: {missing}\n")
        if "--json" in (sys.argv if arguments is None else arguments):
            sys.stdout.write(json.dumps({"error": str(missing), "exit_code": BAD_INPUT}) + "\n")
        return BAD_INPUT
    return entry_point.run(arguments)
