"""Where the words of a command go: to a person, to nobody, or to a program."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from deepzero.cli.options import STOPPED


@dataclass(frozen=True)
class Output:
    """The two places a command writes to.

    Attributes:
        console: for whoever waits: phases, progress, tables, advice. It is stdout; with ``--json`` it is stderr, and
            with ``--quiet`` it shows nothing.
        as_json: whether the result is for a program.
    """

    console: Console
    as_json: bool = False

    @classmethod
    def of(cls, *, quiet: bool, as_json: bool) -> Output:
        """The places that ``--quiet`` and ``--json`` ask for."""
        return cls(Console(highlight=False, stderr=as_json, quiet=quiet), as_json)

    def result(self, shown: RenderableType, /, **values: Any) -> None:
        """Say what came out, once, at the end: ``shown`` to a person, ``values`` to a program. Both stand on stdout.

        Args:
            shown: a line, or a table; a line is not wrapped and nothing in it is markup.
            **values: JSON-able; numbers that are not finite become null, and paths become text.
        """
        if self.as_json:
            from deepzero.files import finite  # noqa: PLC0415 - with PyTorch

            say_json(finite(values))
        elif isinstance(shown, str):
            Console(highlight=False).print(shown, soft_wrap=True, markup=False)
        else:
            Console(highlight=False).print(shown)


def tell_stopped(output: Output, command: str, folder: Path, reason: str | None) -> int:
    """Say that a run was stopped with everything saved, and how it goes on; the exit code for that."""
    words = f"deepzero {command} --resume --out {shlex.quote(str(folder))}"
    told = f"stopped by {reason}; everything is saved in {folder}. To continue:\n  {words}"
    output.result(told, folder=folder, stopped=reason, resume=words)
    return STOPPED


def score(name: str, value: float) -> str:
    """A number of a run in words.

    Example:
        >>> score("test_accuracy", 0.9833), score("loss", 0.123456)
        ('test accuracy 98.33%', 'loss 0.1235')
    """
    words = name.replace("_", " ")
    return f"{words} {value:.2%}" if name.endswith("accuracy") else f"{words} {value:.4g}"


def say_json(values: dict[str, Any]) -> None:
    """One JSON object on a line of its own, on stdout; what JSON does not know is told as text."""
    sys.stdout.write(json.dumps(values, default=str, allow_nan=False) + "\n")
