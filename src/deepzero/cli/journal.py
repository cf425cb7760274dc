"""``deepzero journal``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import DONE, Flag, Json, Quiet
from deepzero.errors import InvalidInputError

if TYPE_CHECKING:
    from deepzero.executors.journal_file import JournalSummary, Row


@dataclass(frozen=True)
class Journal:
    """Say what the journal of a black box holds, and check every answer in it.

    Prints how many answers there are, of which kinds, which problem they answer, and which came first and last. The
    journal is only read. A damaged one is an error that names the row.
    """

    file: Positional[Annotated[Path, arg(metavar="FILE", help_behavior_hint="")]]
    """The journal: the file that was given to dz.QueryJournal or to journal=."""
    csv: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Write the answers as a table, too: key, time, kind, shape, answer."""
    upgrade: Flag = False
    """Bring a journal of an earlier version of deepzero to the present format; the old file is kept beside it."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Read the journal, or upgrade it first."""
        from deepzero.executors import journal_file  # noqa: PLC0415 - with PyTorch

        self._require_place()
        old = journal_file.upgrade(self.file) if self.upgrade else None
        found = journal_file.summary(self.file)
        if self.csv is not None:
            journal_file.write_csv(self.file, self.csv)
        if output.as_json:
            output.result("", **_values(found), csv=self.csv, old=old)
        else:
            _show(found, Console(highlight=False))
            for what, path in (("the old journal is kept as", old), ("table:", self.csv)):
                if path is not None:
                    output.result(f"{what} {path}")
        return DONE

    def _require_place(self) -> None:
        """Refuse a table that cannot be written, before any work."""
        if self.csv is None:
            return
        if self.csv.is_dir():
            table = self.csv / f"{self.file.stem}.csv"
            raise InvalidInputError(f"--csv must be a file, but {self.csv} is a folder; try --csv {table}")
        if not self.csv.absolute().parent.is_dir():
            raise InvalidInputError(f"there is no folder {self.csv.parent}; make it, or choose another --csv")


def _values(found: JournalSummary) -> dict[str, Any]:
    from deepzero.executors.journal_file import time_text  # noqa: PLC0415

    def ends(row: Row | None) -> dict[str, Any] | None:
        return None if row is None or row.at is None else {"key": row.key, "recorded": time_text(row.at)}

    return {
        "path": found.path,
        "format": found.format,
        "problem": found.problem,
        "answers": len(found),
        "numbers": found.numbers,
        "arrays": found.arrays,
        "skipped": found.skipped,
        "first": ends(found.first),
        "last": ends(found.last),
        "bytes": found.size,
    }


def _show(found: JournalSummary, console: Console) -> None:
    from deepzero.executors.journal_file import time_text  # noqa: PLC0415

    checked = "every checksum is right" if found.format > 1 else "a format without checksums: --upgrade"
    kinds = f"{found.numbers:,} numbers, {found.arrays:,} arrays, {found.skipped:,} skipped"
    lines = [
        f"{found.path}: {len(found):,} answers ({kinds}), {found.size:,} bytes; {checked}",
        f"problem: {found.problem or 'not noted yet'}",
    ]
    for name, row in (("first", found.first), ("last", found.last)):
        if row is not None and row.at is not None:
            lines.append(f"{name}: {time_text(row.at)}, {row.key}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
