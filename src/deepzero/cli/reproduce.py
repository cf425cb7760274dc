"""``deepzero reproduce``."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import DONE, STOPPED, DataDir, Device, Json, MaxMinutes, Quiet, seconds_of
from deepzero.errors import InvalidInputError

if TYPE_CHECKING:
    from deepzero.reproduce import Reproduction

SCALES_OWN = "(default: the scale's)"
Whole = Annotated[int | None, arg(metavar="N", help_behavior_hint=SCALES_OWN)]


@dataclass(frozen=True)
class Reproduce:
    """Run a table or figure of the paper again, at a scale, and show it beside the paper's numbers.

    Without a name, list them. The same command continues what was interrupted; what is finished is not run again.
    """

    name: Positional[Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: list them)")]] = None
    """Name of a table or figure, such as fig2."""
    scale: Literal["smoke", "small", "paper"] = "small"
    """Seconds (smoke), about 15 minutes on two cores (small; fig6 1 hour, tab2 2 hours), or the paper's full settings
    (paper), which first says how long it will take."""
    seeds: Whole = None
    """Runs of each kind."""
    epochs: Whole = None
    """Passes over the training images."""
    limit: Whole = None
    """Use only N training images."""
    only: Annotated[tuple[str, ...], arg(metavar="LABEL=VALUE ...", help_behavior_hint="")] = ()
    """Run only the cells with these labels, for example --only d=730 method=CGE."""
    share: Annotated[str, arg(metavar="K/N")] = "1/1"
    """Run every N-th cell from the K-th on, so that N processes can work in one folder."""
    known: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A results.json of the same reproduction, made elsewhere or earlier: its finished cells are not run again."""
    data_dir: DataDir = None
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/<name>-<scale>)")] = None
    """Folder of the results."""
    device: Device = "cpu"
    max_minutes: MaxMinutes = None
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Run the unfinished cells, and print the tables."""
        from deepzero.reproduce import Request, find, reproduce  # noqa: PLC0415 - with PyTorch

        if self.name is None:
            self._require_no_options()
            return _list(output)
        experiment = find(self.name)
        request = Request(
            experiment=experiment,
            scale=self.scale,
            seeds=self.seeds,
            epochs=self.epochs,
            limit=self.limit,
            only=_labels(self.only),
            share=_share(self.share),
        )
        outcome = reproduce(
            request,
            out=self.out or Path("runs") / f"{experiment.name}-{self.scale}",
            data_dir=self.data_dir,
            device=self.device,
            max_seconds=seconds_of(self.max_minutes),
            known=self.known,
            command=self.command,
        )
        return _report(outcome, output)

    def _require_no_options(self) -> None:
        """Raise if there is an option for something that is not named."""
        general = ("name", "quiet", "json")
        set_here = [f.name for f in fields(self) if f.name not in general and getattr(self, f.name) != f.default]
        if set_here:
            option = f"--{set_here[0].replace('_', '-')}"
            raise InvalidInputError(f"{option} has no effect without a NAME; type deepzero reproduce fig2 {option} ...")

    @property
    def command(self) -> str:
        """The command that gives the same results, whoever runs it: without folders, limits of time and shares."""
        assert self.name is not None
        words = ["deepzero", "reproduce", self.name]
        for name in ("scale", "seeds", "epochs", "limit", "device"):
            if (value := getattr(self, name)) != getattr(Reproduce, name):
                words += [f"--{name}", str(value)]
        return shlex.join([*words, *(("--only", *self.only) if self.only else ())])


def _list(output: Output) -> int:
    from deepzero.reproduce import EXPERIMENTS  # noqa: PLC0415

    table = Table("name", "what it compares")
    for experiment in EXPERIMENTS.values():
        table.add_row(", ".join([experiment.name, *experiment.also]), experiment.title)
    listed = [{"name": e.name, "also": list(e.also), "compares": e.title} for e in EXPERIMENTS.values()]
    output.result(table, experiments=listed)
    return DONE


def _labels(words: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"--only takes LABEL=VALUE, got {word!r}; try --only d=730")
        labels[key] = value
    return labels


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise InvalidInputError(f"--share takes K/N, got {text!r}; try --share 1/2 and --share 2/2 in two processes")
    return int(match[1]), int(match[2])


def _report(outcome: Reproduction, output: Output) -> int:
    from deepzero.report import rich_table  # noqa: PLC0415

    diverged = list(outcome.document.facts.get("diverged", ()))
    blocks: list[RenderableType] = [Text(outcome.document.caption), *map(rich_table, outcome.document.tables)]
    lines = [f"see {outcome.folder / 'report.html'}", *(f"diverged, and left out: {name}" for name in diverged)]
    if outcome.stopped:
        lines.append(f"stopped; {outcome.missing} cells are left: the same command continues")
    elif outcome.missing:
        lines.append(f"this share is done; {outcome.missing} cells are left to the others")
    output.result(
        Group(*blocks, *(Text(line, overflow="ignore", no_wrap=True) for line in lines)),
        folder=outcome.folder,
        stopped=outcome.stopped,
        missing=outcome.missing,
        diverged=diverged,
    )
    return STOPPED if outcome.stopped else DONE
