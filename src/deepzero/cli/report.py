"""``deepzero report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import DONE, Flag, Folder, Json, Quiet
from deepzero.errors import InvalidInputError, RunFolderError

FILE = "report.html"
ENDINGS = (".html", ".htm")
WATCHING, MEASURING = ("port", "interval"), ("points", "radius", "data_dir")
"""Options that only --watch and only --surface look at."""


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
    surface: Flag = False
    """Measure the loss around the weights of every run first, along the estimated gradient and a random direction."""
    points: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 21)")] = None
    """Points of the surface along each axis, an odd number: N x N forwards, for --surface."""
    radius: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: a tenth of the weights' norm)")] = (
        None
    )
    """Distance from the weights that the surface reaches, for --surface."""
    data_dir: Folder = None
    """Folder of the data set, for --surface."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Write the page, and say where."""
        out = self._out()
        if self.surface:
            self._measure(output)
        if self.watch and not self._watched(output):
            return DONE
        self._write(out)
        output.result(f"report: {out}", report=out)
        return DONE

    def _measure(self, output: Output) -> None:
        from deepzero.tasks.run_surface import surface  # noqa: PLC0415 - with PyTorch
        from deepzero.training.progress import counting  # noqa: PLC0415

        options: dict[str, Any] = {} if self.points is None else {"points": self.points}
        for run in self.runs:
            with counting(output.console, "forwards for the loss surface") as tell:
                found = surface(run, data_dir=self.data_dir, radius=self.radius, tell=tell, **options)
            spent = f"{len(found['losses']) ** 2:,} forwards, and {found['gradient_queries']:,} for the gradient"
            output.console.print(f"surface: {run / 'surface.json'}: {spent}", soft_wrap=True, markup=False)

    def _write(self, out: Path) -> None:
        from deepzero.files import replace_file  # noqa: PLC0415
        from deepzero.report import page_of  # noqa: PLC0415 - with PyTorch

        text = page_of(self.runs)
        try:
            replace_file(out, text.encode())
        except OSError as error:
            raise RunFolderError(f"{out} could not be written ({error}); choose another --out") from error

    def _watched(self, output: Output) -> bool:
        """Serve the page until all runs have finished; False if that was ended before."""
        from deepzero.report.live_page import Watch  # noqa: PLC0415 - with PyTorch

        options = {} if self.interval is None else {"interval": self.interval}
        with Watch(self.runs, port=self.port or 0, **options) as watch:
            if watch.finished():
                return True
            where = f"watching at {watch.address} until {'it has' if len(self.runs) == 1 else 'all have'} finished"
            try:
                output.console.print(f"{where}; Ctrl-C ends it", soft_wrap=True, markup=False)
                watch.until_done()
            except KeyboardInterrupt:
                output.result("stopped watching", report=None)
                return False
        return True

    def _out(self) -> Path:
        """The file of the page; one that cannot be written is refused before any work."""
        if not self.runs:
            raise InvalidInputError("expected the folder of a run, or several: deepzero report runs/digits-cge-seed0")
        for option, of in (*((o, "watch") for o in WATCHING), *((o, "surface") for o in MEASURING)):
            if not getattr(self, of) and getattr(self, option) is not None:
                name = option.replace("_", "-")
                raise InvalidInputError(f"--{name} has an effect only with --{of}; add --{of}, or leave out --{name}")
        for run in self.runs if self.watch else ():
            if run.exists() and not run.is_dir():
                raise RunFolderError(f"{run} is not a folder; name the folder of a run")
        if self.out is None:
            return self.runs[0] / FILE if len(self.runs) == 1 else Path(FILE)
        if self.out.is_dir():
            raise RunFolderError(f"--out must be a file, but {self.out} is a folder; try --out {self.out / FILE}")
        if self.out.suffix.lower() not in ENDINGS:
            raise InvalidInputError(f"the report is an HTML page, got --out {self.out}; type {self.out}.html")
        if not self.out.parent.is_dir():
            raise RunFolderError(f"there is no folder {self.out.parent}; make it, or choose another --out")
        return self.out
