"""``deepzero report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from deepzero.cli.options import DONE, Flag, Folder, Json, Quiet
from deepzero.cli.output import Output
from deepzero.errors import InvalidInputError, RunFolderError

FILE = "report.html"


@dataclass(frozen=True)
class Report:
    """Show runs on one HTML page that needs no network: curves, tables, settings, hardware.

    Takes folders of `deepzero train`, finished or not, and of `deepzero reproduce`. Several training runs are compared.
    With --watch the page follows runs that are going on.
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="")]]
    """Folders of runs."""
    out: Annotated[Folder, arg(metavar="FILE")] = None
    """The page (default: report.html in the folder of a single run, in the current folder for several)."""
    watch: Flag = False
    """Serve the page to this machine and keep it up to date until all runs have finished; Ctrl-C ends it."""
    port: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a free one)")] = None
    """Port of the page, for --watch."""
    interval: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 2)")] = None
    """Seconds between two looks at the runs, for --watch."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Write the page, and say where."""
        out = self._out()
        if self.watch and not self._watched(output):
            return DONE
        self._write(out)
        output.result(f"report: {out}", report=out)
        return DONE

    def _write(self, out: Path) -> None:
        from deepzero.report import documents, page  # noqa: PLC0415 - with PyTorch
        from deepzero.training.files import replace_file  # noqa: PLC0415

        found = documents(self.runs)
        title = found[0].title if len(self.runs) == 1 else f"Report on {len(self.runs)} runs"
        try:
            replace_file(out, page(found, title=title).encode())
        except OSError as error:
            raise RunFolderError(f"{out} could not be written ({error}); choose another --out") from error

    def _watched(self, output: Output) -> bool:
        """Serve the page until all runs have finished; False if that was ended before."""
        from deepzero.report.watch import Watch  # noqa: PLC0415 - with PyTorch

        options = {} if self.interval is None else {"interval": self.interval}
        try:
            with Watch(self.runs, port=self.port or 0, **options) as watch:
                if watch.finished():
                    return True
                where = f"watching at {watch.address} until {'it has' if len(self.runs) == 1 else 'all have'} finished"
                output.console.print(f"{where}; Ctrl-C ends it", soft_wrap=True, markup=False)
                watch.until_done()
        except KeyboardInterrupt:
            output.result("stopped watching", report=None)
            return False
        return True

    def _out(self) -> Path:
        """Where the page goes; a place that cannot be is refused before any work."""
        if not self.runs:
            raise InvalidInputError("expected the folder of a run, or several: deepzero report runs/digits-cge-seed0")
        for option in ("port", "interval"):
            if not self.watch and getattr(self, option) is not None:
                raise InvalidInputError(f"--{option} has an effect only with --watch; add --watch, or leave it out")
        for run in self.runs if self.watch else ():
            if run.exists() and not run.is_dir():
                raise RunFolderError(f"{run} is not a folder; name the folder of a run")
        if self.out is None:
            return self.runs[0] / FILE if len(self.runs) == 1 else Path(FILE)
        if self.out.is_dir():
            raise RunFolderError(f"--out must be a file, but {self.out} is a folder; try --out {self.out / FILE}")
        if not self.out.parent.is_dir():
            raise RunFolderError(f"there is no folder {self.out.parent}; make it, or choose another --out")
        return self.out
