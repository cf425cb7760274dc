"""The entry point: reads a command, runs it, turns errors into one message and an exit code.

Exit codes: 0, done; 1, the run failed; 2, bad input or a folder that cannot be used; 75, stopped early with
everything saved, to be continued with ``--resume``; 130, interrupted before there was anything to save.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console
from rich.logging import RichHandler
from tyro.conf import Positional

from deepzero import __version__
from deepzero.announce import is_reminder
from deepzero.cli import BAD_INPUT
from deepzero.cli.bench import Bench
from deepzero.cli.command import Command, Output, say_json
from deepzero.cli.correct import Correct
from deepzero.cli.data import Data
from deepzero.cli.defend import Certify, Defend
from deepzero.cli.doctor import Doctor
from deepzero.cli.finished_run import Evaluate, Export, Predict
from deepzero.cli.journal import Journal
from deepzero.cli.options import DONE, Json, Quiet
from deepzero.cli.recipes import Recipes
from deepzero.cli.report import Report
from deepzero.cli.reproduce import Reproduce
from deepzero.cli.signature import options_of
from deepzero.cli.train import Train
from deepzero.cli.words import HELP, check, in_options
from deepzero.errors import DataNotFoundError, DeepZeroError, InvalidInputError, RunFolderError
from deepzero.own import is_own
from deepzero.process_memory import reuse_freed_memory


@dataclass(frozen=True)
class Completion:
    """Print the script with which a shell completes commands and options.

    For bash: deepzero completion bash > ~/.local/share/bash-completion/completions/deepzero
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Print the script."""
        script = completion_script(self.shell)
        if output.as_json:
            output.result("", shell=self.shell, script=script)
        else:
            sys.stdout.write(script)
        return DONE


DESCRIPTION = "Train deep networks from function values alone."

COMMANDS: dict[str, Callable[..., Command]] = {
    "train": Train,
    "predict": Predict,
    "evaluate": Evaluate,
    "export": Export,
    "doctor": Doctor,
    "defend": Defend,
    "certify": Certify,
    "correct": Correct,
    "report": Report,
    "reproduce": Reproduce,
    "bench": Bench,
    "recipes": Recipes,
    "data": Data,
    "journal": Journal,
    "completion": Completion,
}
"""To add a command: write its class in a file of its own, and name it here."""

FAILED, INTERRUPTED = 1, 130
BAD_INPUT_ERRORS = (InvalidInputError, DataNotFoundError, RunFolderError)
JSON = "--json"
OWN_CODE = ("train", "doctor")
"""Commands that take a recipe of the user's own."""
INDENT = 16 * " "


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: words of the command line, by default those of this process.
    """
    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if words[0] in ("--version", "-V"):
        print(f"deepzero {__version__}")
        return 0
    as_json = JSON in words
    try:
        check(words, COMMANDS)
        command = _parsed(words)
        if arguments is None and not isinstance(command, Bench):  # the process is ours; a benchmark is of the usual one
            reuse_freed_memory()
        output = Output.of(quiet=command.quiet, as_json=command.json)
        with _messages_on(output.console, quiet=command.quiet):
            if "torch" not in sys.modules and not isinstance(command, Completion):
                output.console.print(f"deepzero {__version__}: loading PyTorch")
            return command.run(output)
    except SystemExit as leaving:  # --help
        return leaving.code if isinstance(leaving.code, int) else BAD_INPUT
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, as_json=as_json)
    except DeepZeroError as error:
        code = BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED
        return _fail(_spoken(str(error), words), code, as_json=as_json)


def _spoken(message: str, words: Sequence[str]) -> str:
    """A message in the words of the command line; names in code of the user's own stay as they are there."""
    of_recipe = (word for before, word in pairwise(words) if before not in ("--device", "--model", "--data"))
    if words[0] not in COMMANDS or (words[0] in OWN_CODE and any(map(is_own, of_recipe))):
        return message
    return in_options(message, {option.name for option in options_of(COMMANDS[words[0]]).values()})


def _parsed(words: Sequence[str]) -> Command:
    """The command that the words are; help is wrapped, and that of the whole program has one sentence of each.

    Raises:
        SystemExit: help was asked for.
        InvalidInputError: the parser refuses a word.
    """
    in_brief = words[0] in HELP
    kinds: Any = Union[tuple(_kind(name, command, in_brief=in_brief) for name, command in COMMANDS.items())]  # noqa: UP007
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command: Command = tyro.cli(kinds, prog="deepzero", description=DESCRIPTION, args=words)
    except SystemExit as leaving:
        if leaving.code:
            message = " ".join(re.sub(r"[^\x20-\x7e]|-{3,}", " ", err.getvalue()).split())
            raise InvalidInputError(
                message or f"the words are not understood; see `deepzero {words[0]} --help`"
            ) from None
        print(_wrapped(out.getvalue()) if set(words) & set(HELP) else out.getvalue(), end="")
        raise
    return command


def _kind(name: str, command: Callable[..., Command], *, in_brief: bool) -> Any:
    description = (command.__doc__ or "").partition("\n")[0] if in_brief else None
    return Annotated[command, tyro.conf.subcommand(name, description=description, prefix_name=False)]


def _wrapped(text: str) -> str:
    """Help whose paragraphs are as wide as the screen; its boxes are already."""
    text = text.replace("{" + ",".join(COMMANDS) + "}", "COMMAND ...")
    width = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        wrapper.subsequent_indent = INDENT * line.startswith("usage:")
        lines.append(wrapper.fill(line))
    return "\n".join(lines) + "\n"


def completion_script(shell: str) -> str:
    """The script with which a shell completes the words of this program."""
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        _parsed(["--tyro-print-completion", shell])
    return script.getvalue()


def _fail(message: str, code: int, *, as_json: bool) -> int:
    message = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "?", message)  # of a file, and not for the terminal to obey
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"error: {message}", style="red", markup=False)
    if as_json:
        say_json({"error": message, "exit_code": code})
    return code


@contextmanager
def _messages_on(console: Console, *, quiet: bool) -> Iterator[None]:
    """Show messages and warnings of the library above the progress bar; when quiet, warnings on stderr."""
    log = logging.getLogger("deepzero")
    shown = Console(stderr=True, highlight=False) if quiet else console
    handler = RichHandler(console=shown, show_time=False, show_level=False, show_path=False)
    handler.addFilter(lambda record: not is_reminder(record))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: log.warning("warning: %s", message)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
