"""Tables of a benchmark for a terminal, and its rows as texts for whatever shows them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from deepzero.measure.benchmark import MIB, CaseReport, SideReport
from deepzero.measure.block_reuse import split, splittable
from deepzero.measure.rounds import Spread
from deepzero.measure.rule_profile import ParameterTime

TITLES = {
    "naive": "best plain loop",
    "naive_float64": "best plain loop in float64",
    "block_reuse": "loop with block reuse",
    "deepzero": "deepzero",
}


COLUMNS = (
    "case",
    "queries/s",
    "over the best plain loop",
    "its form",
    "over block reuse",
    "error: ours",
    "error: plain loop",
    "floor",
    "of the floor",
    "memory",
)
"""Of :func:`speed_row`."""


def speed_row(case: Mapping[str, Any]) -> list[str]:
    """A case of a record as the texts of a row of the whole table."""
    ratios, errors, floor = case["ratios"], case["errors"], case["floor"]
    rate = case["sides"]["deepzero"]["queries_per_second"]["median"]
    reuse = ratios.get("deepzero/block_reuse")
    return [
        case["case"],
        f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
        times(ratios["deepzero/naive"]),
        case["sides"]["naive"]["form"]["taken"],
        times(reuse) if reuse else "-",
        f"{errors['rounding']['deepzero']:.0e}",
        plain_error(case),
        f"{1e6 * floor['work_of_a_query']['seconds']:,.0f} µs",
        f"{floor['reached']['median']:.0%}",
        " ".join(f"{memory['growth'] / MIB:,.0f} MiB" for memory in case["memory"][:1]) or "-",
    ]


def plain_error(case: Mapping[str, Any]) -> str:
    """The error of the float32 loop; where it is noise, how deepzero compares with a loop in float64, too."""
    error = f"{case['errors']['rounding']['naive']:.0e}"
    double = case["ratios"].get("deepzero/naive_float64")
    return f"{error} (float64: {times(double)})" if double else error


def times(spread: Mapping[str, Any]) -> str:
    """A ratio with its extremes.

    >>> times({"median": 26.04, "min": 25.0, "max": 27.21}), times({"median": 0.418, "min": 0.41, "max": 0.43})
    ('26.0x (25.0 to 27.2)', '0.42x (0.41 to 0.43)')
    """
    digits = 1 if spread["median"] >= 2 else 2
    return f"{spread['median']:.{digits}f}x ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"


def whole_table(cases: Sequence[Mapping[str, Any]]) -> Table:
    """All cases, a row each."""
    table = Table(*COLUMNS, title="speed, median (min to max) of rounds")
    for case in cases:
        table.add_row(*speed_row(case))
    return table


GROWTH_COLUMNS = ("against", "at", "network", "set-up", "ms/query", "over a plain loop")
"""Of :func:`growth_row`."""


def growth_row(point: Mapping[str, Any]) -> list[str]:
    """A point of a curve as the texts of a row."""
    milliseconds = f"{1e3 * point['seconds_per_query']:.3f}"
    setup = f"{point['setup_seconds']:.1f} s"
    return [point["curve"], f"{point['at']:g}", point["network"], setup, milliseconds, times(point["ratio"])]


def growth_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """The growth of the cost of a query."""
    table = Table(*GROWTH_COLUMNS, title="growth of the cost of a query")
    for point in points:
        table.add_row(*growth_row(point))
    return table


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
    for block, own in _by_block(report):
        queries, share = sum(p.queries for p in own), sum(p.share for p in own)
        each = sum(p.queries * p.microseconds for p in own) / queries / 1e3
        table.add_row(block, f"{queries:,}", f"{each:.3f}", f"{share:.1%}")
    return table


def _by_block(report: CaseReport) -> Iterator[tuple[str, list[ParameterTime]]]:
    """The parameters of a block that block reuse knows, or else of a module of the first two levels."""
    model, parameters = report.problem.model, report.profile.parameters
    if splittable(model):
        for block in split(model):
            yield block.name, [p for p in parameters if block.owns(p.name)]
    else:
        for name, own in itertools.groupby(parameters, lambda p: ".".join(p.name.split(".")[:-1][:2])):
            yield name, list(own)


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
