"""The record of a benchmark: JSON that is written after every case, and that a later command can go on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from deepzero.errors import InvalidInputError, RunFolderError
from deepzero.files import json_object, read_from
from deepzero.measure.benchmark import CaseReport, Settings, SideReport, run
from deepzero.measure.cases import CASES
from deepzero.measure.cost_curves import CostPoint, cost_point, planned_points
from deepzero.measure.measurement_record import heading, write_record
from deepzero.measure.sides import LEFT_OUT, FormTrial
from deepzero.stopwatch import Stopwatch
from deepzero.training import StopRequest

FORMAT = 3
GROWTH_SECONDS = 2.0
"""That each side is timed at a point of a curve."""


@dataclass
class BenchRecord:
    """Cases and points of curves, each written down as soon as it is measured.

    Attributes:
        settings: of the measurement.
        out: the file; None for none.
        command: the command line.
        environment: hardware, versions and load, from :func:`deepzero.measure.measurement_record.environment`.
        cases: records of the cases.
        growth: records of the points of curves.
        stop: asked between cases and points; signals are noted from the first one on that was written down.
    """

    settings: Settings
    out: Path | None
    command: str
    environment: Mapping[str, Any]
    cases: list[dict[str, Any]] = field(default_factory=list)
    growth: list[dict[str, Any]] = field(default_factory=list)
    stop: StopRequest = field(default_factory=partial(StopRequest, waits=True, work="case"))

    @property
    def content(self) -> dict[str, Any]:
        """The whole as JSON-able values, with the circumstances of the measurement."""
        return {
            "format": FORMAT,
            **heading({**self.environment, "threads": self.settings.threads}, command=self.command),
            "settings": asdict(self.settings),
            "cases": self.cases,
            "growth": self.growth,
        }

    def resume(self) -> None:
        """Take over what the file has.

        Raises:
            InvalidInputError: it is no such record, or was made with other settings.
        """
        if self.out is None or not self.out.exists():
            return
        try:
            content = json_object(self.out)
        except RunFolderError as error:
            raise InvalidInputError(f"{error}; try another --out") from error
        if content.get("format") != FORMAT:
            raise InvalidInputError(f"{self.out} is no record of format {FORMAT} to go on with; try another --out")
        with read_from(self.out, advice="try another --out"):
            before, now = ({**one, "seconds": None} for one in (dict(content["settings"]), asdict(self.settings)))
            named = [case["case"] for case in content["cases"]], [point["curve"] for point in content["growth"]]
        if not all(isinstance(name, str) for names in named for name in names):
            raise InvalidInputError(f"{self.out} holds cases without a name; try another --out")
        if before != now:
            changed = ", ".join(f"{name} was {before.get(name)!r}" for name in now if before.get(name) != now[name])
            raise InvalidInputError(f"{self.out} was made with other settings ({changed}); try another --out")
        self.cases, self.growth = content["cases"], content["growth"]

    def measure(self, names: Sequence[str], seconds: float | None = None) -> Iterator[CaseReport]:
        """Measure the cases that are not there yet.

        Args:
            names: the cases.
            seconds: for all that are left, shared out in proportion to the cases' own; None for no budget.
        """
        done = {case["case"] for case in self.cases}
        left = [name for name in names if name not in done]
        watch = Stopwatch()
        for position, name in enumerate(left):
            if self.stop.reason is not None:
                return
            share = CASES[name].seconds / sum(CASES[other].seconds for other in left[position:])
            budget = None if seconds is None else max(1.0, share * (seconds - watch.seconds()))
            report = run(name, replace(self.settings, seconds=budget))
            self.cases.append(case_record(report))
            self.write()
            yield report

    def measure_growth(self) -> Iterator[CostPoint]:
        """Measure the points of curves that are not there yet."""
        done = {(point["curve"], point["at"]) for point in self.growth}
        for asked in planned_points(self.settings.threads):
            if self.stop.reason is not None:
                return
            if (asked.curve, asked.at) not in done:
                point = cost_point(
                    asked, step_size=self.settings.step_size, seed=self.settings.seed, seconds=GROWTH_SECONDS
                )
                self.growth.append(asdict(point))
                self.write()
                yield point

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write_record(self.out, self.content)
        if self.out is not None:
            self.stop.begin()


def case_record(report: CaseReport) -> dict[str, Any]:
    """A case as JSON-able values."""
    problem = report.problem
    return {
        "case": problem.case.name,
        "model": {"name": problem.case.model, "parameters": sum(p.numel() for p in problem.model.parameters())},
        "batch": {"shape": list(problem.batch[0].shape), "source": problem.case.source.words},
        "coordinates": {"count": problem.coordinates.count, "smart_ratio_sparsity": problem.sparsity},
        "queries": problem.queries,
        "rounds": len(next(iter(report.sides.values())).timings),
        "sides": {name: _side(side) for name, side in report.sides.items()},
        "ratios": {name: asdict(spread) for name, spread in report.ratios.items()},
        "agreement": asdict(report.agreement),
        "errors": asdict(report.errors),
        "floor": {
            "ceilings_of_one_thread": asdict(report.ceilings),
            "work_of_a_query": asdict(report.work),
            "reached": asdict(report.floor_reached),
        },
        "setup_seconds": report.setup_seconds,
        "profile": asdict(report.profile),
        "memory": [asdict(memory) for memory in report.memory],
    }


def _side(side: SideReport) -> dict[str, Any]:
    return {
        "method": side.method,
        "form": None if side.trial is None else _form(side.trial),
        "queries_per_second": asdict(side.queries_per_second),
        "timings": [{**asdict(t), "timed_fraction": t.timed_queries / t.queries} for t in side.timings],
    }


def _form(trial: FormTrial) -> dict[str, Any]:
    """The form that a loop took, and the speed of all."""
    return {"taken": trial.fastest.name, "trial_queries_per_second": trial.queries_per_second, "not_tried": LEFT_OUT}
