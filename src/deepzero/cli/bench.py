"""``deepzero bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Group, RenderableType
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import DONE, STOPPED, Json, Quiet
from deepzero.errors import InvalidInputError

ALL = "all"
CASES_OWN = "(default: the case's)"

CaseName = Literal["cnn", "cnn-1", "digits", "lora-gpt", "mlp", "resnet20", "transformer-block"]


@dataclass(frozen=True)
class Bench:
    """Time deepzero against loops of full forwards, in one process, in turns.

    Three sides answer the same queries: the best plain loop (one full forward in train mode for every coordinate), a
    loop with the paper's block-level feature reuse for the networks whose blocks are known, and deepzero. Loops run in
    the form (memory format, grad mode, oneDNN) that is fastest on this machine in a short trial at the start. Where the
    slopes of a float32 loop are noise, the loop in float64 is timed, too. Sides that would take too long are timed on a
    sample. Leave the machine alone meanwhile. With --out, Ctrl-C finishes the case, and --resume goes on.
    """

    case: Positional[
        Annotated[
            Literal["cnn", "cnn-1", "digits", "lora-gpt", "mlp", "resnet20", "transformer-block", "all"],
            arg(metavar="CASE"),
        ]
    ] = "digits"
    """digits; cnn and cnn-1 (of depth 5 and 1); mlp, resnet20, transformer-block, lora-gpt; or all of them."""
    cases: Annotated[tuple[CaseName, ...], arg(metavar="CASE ...", help_behavior_hint="(default: every case)")] = ()
    """With all: these cases only."""
    seconds: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: no budget)")] = None
    """Seconds for all cases together, about, in place of --seconds-per-side."""
    batch: Annotated[int | None, arg(metavar="N", help_behavior_hint=CASES_OWN)] = None
    """Images or sequences of the batch."""
    sparsity: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 0, and 0.9 for resnet20)")] = None
    """Part of the weights that is not queried, in [0, 1); 0 queries all coordinates."""
    step_size: float = 5e-3
    """Step of the finite difference."""
    threads: int = 2
    """Threads of torch for the loops, and workers of deepzero."""
    rounds: int = 5
    """Turns of each side."""
    seconds_per_side: Annotated[float | None, arg(metavar="X", help_behavior_hint=CASES_OWN)] = None
    """Seconds that each side is timed, all rounds together."""
    whole: FlagCreatePairsOff[bool] = False
    """Time deepzero on all coordinates in every round, however long that takes."""
    growth: FlagCreatePairsOff[bool] = False
    """Measure, too, how the cost of a query grows with batch, width, depth, coordinates and threads."""
    memory: bool = True
    """Measure the peak of memory, in a process of its own."""
    budget_mib: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Measure the peak of memory at this memory budget too."""
    seed: int = 0
    """Seed of weights, batch and coordinates."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write a JSON record to this file, after every case."""
    resume: FlagCreatePairsOff[bool] = False
    """Go on with the record in --out: what it has is not measured again."""
    plot: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw the ratios of all cases in an SVG file (needs deepzero[plot])."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Measure, print the tables, and write the record."""
        from deepzero import measure  # noqa: PLC0415 - with PyTorch
        from deepzero.measure.measurement_record import command_line, environment  # noqa: PLC0415 - with PyTorch

        self._check()
        settings = measure.Settings(**{f.name: getattr(self, f.name) for f in fields(measure.Settings)})
        for name in self._names():
            measure.problem(name, **settings.problem)  # bad input is found before anything is measured
        record = measure.BenchRecord(
            settings, self.out, command_line("deepzero"), environment(libraries=("numba", "numpy"))
        )
        if self.resume:
            record.resume()
        with record.stop as stop:
            reports = record.measure(self._names(), self.seconds)
            shown: list[RenderableType] = [table for report in reports for table in measure.tables(report)]
            if self.case == ALL:
                shown.append(measure.whole_table(record.cases))
            if self.growth:
                list(record.measure_growth())
                shown.append(measure.growth_table(record.growth))
            stopped = stop.reason
        for path in (self.out, *self._drawn(record.content)):
            if path is not None:
                output.console.print(f"written: {path}", soft_wrap=True)
        if stopped is not None:
            shown.append(f"stopped by {stopped}; --resume goes on with {self.out}")
        output.result(Group(*shown), **record.content)
        return DONE if stopped is None else STOPPED

    def _names(self) -> list[str]:
        from deepzero.measure import CASES  # noqa: PLC0415 - with PyTorch

        return list(self.cases or CASES) if self.case == ALL else [self.case]

    def _check(self) -> None:
        """Refuse what could not be written, or has no effect, before anything is measured."""
        for option, path, ending in (("--out", self.out, "json"), ("--plot", self.plot, "svg")):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise InvalidInputError(
                    f"{option} must be a file in a folder that exists, got {path}; try {option} bench.{ending}"
                )
        if self.cases and self.case != ALL:
            raise InvalidInputError(f"--cases goes with all, got {self.case}; type deepzero bench all --cases ...")
        if self.resume and self.out is None:
            raise InvalidInputError("--resume goes on with a record; say with --out which")
        if self.plot is not None:
            import deepzero.report.svg  # noqa: F401, PLC0415 - what it needs is missed now, not in ten minutes

    def _drawn(self, content: Mapping[str, Any]) -> list[Path]:
        """Draw the ratios, and the growth if it was measured; the files."""
        if self.plot is None:
            return []
        from deepzero.files import replace_file  # noqa: PLC0415 - with PyTorch
        from deepzero.report.speed_figures import growth_figure, speed_figure  # noqa: PLC0415 - with PyTorch
        from deepzero.report.svg import draw  # noqa: PLC0415 - with Matplotlib

        figures = {self.plot: speed_figure([content])}
        if content["growth"]:
            figures[self.plot.with_stem(f"{self.plot.stem}-growth")] = growth_figure(content["growth"])
        for path, figure in figures.items():
            replace_file(path, draw(figure).encode())
        return list(figures)
