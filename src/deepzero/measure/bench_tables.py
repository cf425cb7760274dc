"""A measurement as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from deepzero.measure.benchmark import MIB, CaseReport, SideReport
from deepzero.measure.network_stages import split
from deepzero.measure.rounds import Spread

TITLES = {"naive": "naive loop", "block_reuse": "loop with block reuse", "deepzero": "deepzero"}


def tables(report: CaseReport) -> Iterator[Table]:
    """Speed, where the time goes, and memory if it was measured."""
    yield _speed(report)
    yield _blocks(report)
    yield _rules(report)
    if report.memory:
        yield _memory(report)


def _speed(report: CaseReport) -> Table:
    asked = report.problem
    coordinates = f"{asked.coordinates.count:,} coordinates"
    title = f"{asked.case.name}: {coordinates}, batch {len(asked.batch[0])}, median (min to max) of rounds"
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
    for stage in split(report.problem.model):
        own = [p for p in report.profile.parameters if stage.owns(p.name)]
        queries, share = sum(p.queries for p in own), sum(p.share for p in own)
        each = sum(p.queries * p.microseconds for p in own) / queries / 1e3
        table.add_row(stage.name, f"{queries:,}", f"{each:.3f}", f"{share:.1%}")
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
