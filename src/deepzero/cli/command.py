"""What every command is: a frozen record of its options that can be run."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console


class Command(Protocol):
    """A command; its fields are its options, and its docstring is its help."""

    def run(self, console: Console) -> int:
        """Run the command and return the exit code of the process."""
        ...
