"""What every command is: a frozen record of its options that can be run."""

from __future__ import annotations

from typing import Protocol

from deepzero.cli.output import Output


class Command(Protocol):
    """A command; its fields are its options, and its docstring is its help.

    Its module imports nothing that takes long: PyTorch, and what needs it, is imported inside of ``run``, when the
    words are known to be right.
    """

    @property
    def quiet(self) -> bool:
        """Whether to say only the result, warnings and errors."""
        ...

    @property
    def json(self) -> bool:
        """Whether the result is for a program."""
        ...

    def run(self, output: Output) -> int:
        """Run the command and return the exit code of the process."""
        ...
