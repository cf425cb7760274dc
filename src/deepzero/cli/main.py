"""The entry point: reads a command, runs it, turns errors into one message and an exit code.

Exit codes: 0, done; 1, the run failed; 2, bad input or a folder that cannot be used; 75, stopped early with
everything saved, to be continued with ``--resume``; 130, interrupted before there was anything to save.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import tyro
from rich.console import Console
from rich.logging import RichHandler

from deepzero.cli.allocator import reuse_freed_memory
from deepzero.cli.bench import Bench
from deepzero.cli.command import Command
from deepzero.cli.correct import Correct
from deepzero.cli.data import Data
from deepzero.cli.defend import Certify, Defend
from deepzero.cli.doctor import Doctor
from deepzero.cli.recipes import Recipes
from deepzero.cli.report import Report
from deepzero.cli.reproduce import Reproduce
from deepzero.cli.train import Train
from deepzero.cli.words import check
from deepzero.errors import DataNotFoundError, DeepZeroError, InvalidInputError, RunFolderError

DESCRIPTION = "Train deep networks from function values alone."

COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train,
    "doctor": Doctor,
    "defend": Defend,
    "certify": Certify,
    "correct": Correct,
    "report": Report,
    "reproduce": Reproduce,
    "bench": Bench,
    "recipes": Recipes,
    "data": Data,
}
"""To add a command: write its class in a file of its own, and name it here."""

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
BAD_INPUT_ERRORS = (InvalidInputError, DataNotFoundError, RunFolderError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: words of the command line, by default those of this process.
    """
    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if words[0] in ("--version", "-V"):
        print(f"deepzero {version('deepzero')}")
        return 0
    try:
        check(words, COMMANDS)
        command: Command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="deepzero", description=DESCRIPTION, args=words
        )
    except SystemExit as leaving:  # --help, or words that are no command; tyro has said so
        return leaving.code if isinstance(leaving.code, int) else BAD_INPUT
    except InvalidInputError as error:
        return _fail(str(error), BAD_INPUT)
    if arguments is None and not isinstance(command, Bench):  # the process is ours; a benchmark is of the usual one
        reuse_freed_memory()
    console = Console(highlight=False)
    try:
        with _messages_on(console):
            return command.run(console)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except DeepZeroError as error:
        return _fail(str(error), BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED)


def _fail(message: str, code: int) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"error: {message}", style="red", markup=False)
    return code


@contextmanager
def _messages_on(console: Console) -> Iterator[None]:
    """Show what the library has to say, warnings included, above the progress bar."""
    log = logging.getLogger("deepzero")
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
