"""The report of a benchmark: a record with every round, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from deepzero.measure.benchmark import MIB, CaseReport, Settings, SideReport
from deepzero.measure.block_reuse import split
from deepzero.measure.measurement_record import heading
from deepzero.measure.rounds import Spread
from deepzero.measure.sides import LEFT_OUT, FormTrial

FORMAT = 2
TITLES = {"naive": "naive loop", "block_reuse": "loop with block reuse", "deepzero": "deepzero"}


def record(
    reports: Sequence[CaseReport], settings: Settings, *, command: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """All cases as JSON-able values, with the circumstances of the measurement.

    Args:
        reports: the cases.
        settings: of the measurement.
        command: the command line.
        environment: hardware, versions and load, from :func:`deepzero.measure.measurement_record.environment`.
    """
    return {
        "format": FORMAT,
        **heading({**environment, "threads": settings.threads}, command=command),
        "settings": asdict(settings),
        "cases": [_case(report) for report in reports],
    }


def _case(report: CaseReport) -> dict[str, Any]:
    problem = report.problem
    return {
        "case": problem.case.name,
        "model": {"name": problem.case.model, "parameters": sum(p.numel() for p in problem.model.parameters())},
        "batch": {"shape": list(problem.batch[0].shape), "images": problem.case.source.words},
        "coordinates": {"count": problem.coordinates.count, "smart_ratio_sparsity": problem.sparsity},
        "queries": problem.queries,
        "rounds": len(next(iter(report.sides.values())).timings),
        "sides": {name: _side(side) for name, side in report.sides.items()},
        "ratios": {name: asdict(spread) for name, spread in report.ratios.items()},
        "agreement": asdict(report.agreement),
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


def tables(report: CaseReport) -> Iterator[Table]:
    """Speed, where the time goes, and memory if it was measured."""
    yield _speed(report)
    yield _blocks(report)
    yield _rules(report)
    if report.memory:
        yield _memory(report)


def _speed(report: CaseReport) -> Table:
    problem = report.problem
    coordinates = f"{problem.coordinates.count:,} coordinates"
    title = f"{problem.case.name}: {coordinates}, batch {len(problem.batch[0])}, median (min to max) of rounds"
    table = Table("side", "queries/s", "deepzero / side", "timed part", title=title)
    for name, side in report.sides.items():
        quotient = report.ratios.get(f"deepzero/{name}")
        part = min(t.timed_queries / t.queries for t in side.timings)
        faster = "" if quotient is None else _spread(quotient, "x")
        table.add_row(_title(name, side), _spread(side.queries_per_second), faster, f"{min(part, 1.0):.1%}")
    return table


def _title(name: str, side: SideReport) -> str:
    return TITLES[name] if side.trial is None else f"{TITLES[name]} ({side.trial.fastest.name})"


def _spread(spread: Spread, unit: str = "") -> str:
    return f"{spread.median:,.1f}{unit} ({spread.min:,.1f} to {spread.max:,.1f})"


def _blocks(report: CaseReport) -> Table:
    """By block; the record has every parameter."""
    title = "where the time of deepzero goes, by block"
    table = Table("block", "queries", "ms/query, one thread", "share of time", title=title)
    for block in split(report.problem.model):
        own = [p for p in report.profile.parameters if block.owns(p.name)]
        queries, share = sum(p.queries for p in own), sum(p.share for p in own)
        each = sum(p.queries * p.microseconds for p in own) / queries / 1e3
        table.add_row(block.name, f"{queries:,}", f"{each:.3f}", f"{share:.1%}")
    return table


def _rules(report: CaseReport) -> Table:
    table = Table("rule", "share of time", title="by rule")
    for rule, share in report.profile.rules.items():
        table.add_row(rule, f"{share:.1%}")
    return table


def _memory(report: CaseReport) -> Table:
    table = Table("budget", "the estimate took", "process at its peak", title="memory, MiB")
    for memory in report.memory:
        table.add_row(*(f"{size / MIB:,.0f}" for size in (memory.budget, memory.growth, memory.peak)))
    return table
