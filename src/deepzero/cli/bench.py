"""``deepzero bench``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Group
from tyro.conf import FlagCreatePairsOff, Positional, arg

from deepzero.cli.command import Output
from deepzero.cli.options import Json, Quiet
from deepzero.errors import InvalidInputError

ALL = "all"
CASES_OWN = "(default: the case's)"


@dataclass(frozen=True)
class Bench:
    """Time deepzero against loops of full forwards, in one process, in turns.

    Three sides answer the same queries: a naive loop (one full forward in train mode for every coordinate), a loop with
    the paper's block-level feature reuse, and deepzero. Both loops run in the form (memory format, grad mode, oneDNN)
    that is fastest on this machine in a short trial at the start. Sides that would take too long are timed on a sample.
    Leave the machine alone meanwhile.
    """

    case: Positional[Literal["cnn", "digits", "resnet20", "all"]] = "digits"
    """The depth-5 CNN or the digits network, whole gradient; ResNet-20 at coordinates drawn by Smart-Ratio; or all."""
    batch: int = 128
    """Images of the batch."""
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
    memory: bool = True
    """Measure the peak of memory, in a process of its own."""
    budget_mib: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Measure the peak of memory at this memory budget too."""
    seed: int = 0
    """Seed of weights, batch and coordinates."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write a JSON record to this file."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Measure, print the tables, and write the record."""
        from deepzero.measure import CASES, Settings, problem, record, run, tables  # noqa: PLC0415 - with PyTorch
        from deepzero.measure.measurement_record import command_line, environment, write_record  # noqa: PLC0415

        self._check_out()
        settings = Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})
        names = [name for name in CASES if name in ("cnn", "digits", "resnet20")] if self.case == ALL else [self.case]
        for name in names:
            problem(name, **settings.problem)  # bad input is found before anything is measured
        circumstances = environment(libraries=("numba", "numpy"))
        reports = [run(name, settings) for name in names]
        content = record(reports, settings, command=command_line("deepzero"), environment=circumstances)
        if self.out is not None:
            write_record(self.out, content)
            output.console.print(f"record: {self.out}", soft_wrap=True)
        output.result(Group(*(table for report in reports for table in tables(report))), **content)
        return 0

    def _check_out(self) -> None:
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise InvalidInputError(
                f"--out must be a file in a folder that exists, got {self.out}; try --out bench.json"
            )
