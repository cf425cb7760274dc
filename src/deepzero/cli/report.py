"""``deepzero report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepzero.cli.options import DONE, Folder, Json, Quiet
from deepzero.cli.output import Output
from deepzero.errors import InvalidInputError, RunFolderError

FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """Show runs on one HTML page that needs no network: curves, tables, settings, hardware.

    Takes folders of `deepzero train`, finished or not, and of `deepzero reproduce`. Several training runs are compared.
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="")]]
    """Folders of runs."""
    out: Annotated[Folder, arg(metavar="FILE")] = None
    """The page (default: report.html in the folder of a single run, in the current folder for several)."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Write the page, and say where."""
        from deepzero.report import documents, page  # noqa: PLC0415 - with PyTorch
        from deepzero.training.files import replace_file  # noqa: PLC0415

        out = self._out()
        found = documents(self.runs)
        title = found[0].title if len(self.runs) == 1 else f"Report on {len(self.runs)} runs"
        try:
            replace_file(out, page(found, title=title).encode())
        except OSError as error:
            raise RunFolderError(f"{out} could not be written ({error}); choose another --out") from error
        output.result(f"report: {out}", report=out)
        return DONE

    def _out(self) -> Path:
        """Where the page goes; a place that cannot be is refused before any work."""
        if not self.runs:
            raise InvalidInputError("expected the folder of a run, or several: deepzero report runs/digits-cge-seed0")
        if self.out is None:
            return self.runs[0] / FILE if len(self.runs) == 1 else Path(FILE)
        if self.out.is_dir():
            raise RunFolderError(f"--out must be a file, but {self.out} is a folder; try --out {self.out / FILE}")
        if not self.out.parent.is_dir():
            raise RunFolderError(f"there is no folder {self.out.parent}; make it, or choose another --out")
        return self.out
