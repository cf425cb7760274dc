"""A command: a frozen record of its options that can be run, and the output that it writes to."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, RenderableType

from deepzero.cli.options import STOPPED


class Command(Protocol):
    """A command; its fields are its options, and its docstring is its help.

    Its module imports nothing that takes long: PyTorch, and what needs it, is imported inside of ``run``, when the
    words are known to be right.
    """

    @property
    def quiet(self) -> bool:
        """True to print the result, warnings and errors, and nothing else."""
        ...

    @property
    def json(self) -> bool:
        """True to print the result as one JSON object."""
        ...

    def run(self, output: Output) -> int:
        """Run the command and return the exit code of the process."""
        ...


@dataclass(frozen=True)
class Output:
    """The two places a command writes to.

    Attributes:
        console: for whoever waits: phases, progress, tables, advice. It is stdout; with ``--json`` it is stderr, and
            with ``--quiet`` it shows nothing.
        as_json: the result is for a program.
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
    line = f"stopped by {reason}; everything is saved in {folder}. To continue:\n  {words}"
    output.result(line, folder=folder, stopped=reason, resume=words)
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
    """One JSON object on a line of its own, on stdout; values that JSON has no form for become text."""
    sys.stdout.write(json.dumps(values, default=str, allow_nan=False) + "\n")
