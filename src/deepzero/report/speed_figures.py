"""Tables and figures of a record of ``deepzero bench``: speed, floors, profiles, growth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepzero.measure.bench_report import COLUMNS, GROWTH_COLUMNS, TITLES, growth_row, speed_row
from deepzero.report.figures import Figure, Series, Table

OURS = "deepzero"
RULES_SHOWN = 4
"""The rules of a case that take the most time."""
CURVES = {
    "batch": "batch",
    "width": "channels of a CNN",
    "depth": "layers of a ResNet",
    "share of coordinates": "coordinates of a perceptron",
    "threads": "threads",
}
"""The curves of the growth of a query's cost, in words."""


def speed_tables(content: Mapping[str, Any]) -> Iterator[Table]:
    """Speed, floors, and where the time goes, a row for each case; then growth, if it was measured."""
    cases = content["cases"]
    threads = content["environment"]["threads"]
    yield Table(title=f"Speed on {_threads(threads)}", columns=COLUMNS, rows=[speed_row(case) for case in cases])
    yield Table(
        title="The floor of a query, and where the time goes",
        columns=("case", "operations", "bytes", "floor", "measured, one worker", "of the floor", "rules"),
        rows=[_floor_row(case, threads) for case in cases],
        note="A worker's ceilings in the same run: " + "; ".join(_ceilings(case) for case in cases[:1]) + ".",
    )
    if content.get("growth"):
        yield Table(title="Growth", columns=GROWTH_COLUMNS, rows=[growth_row(point) for point in content["growth"]])


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _floor_row(case: Mapping[str, Any], threads: int) -> list[str]:
    work, reached = case["floor"]["work_of_a_query"], case["floor"]["reached"]
    each = threads / case["sides"][OURS]["queries_per_second"]["median"]
    rules = sorted(case["profile"]["rules"].items(), key=lambda item: -item[1])[:RULES_SHOWN]
    return [
        case["case"],
        f"{work['operations'] / 1e6:,.3g} M",
        f"{work['bytes'] / 1e6:,.3g} MB",
        f"{1e6 * work['seconds']:,.0f} µs",
        f"{1e6 * each:,.0f} µs",
        f"{reached['median']:.0%}",
        ", ".join(f"{rule} {share:.0%}" for rule, share in rules),
    ]


def _ceilings(case: Mapping[str, Any]) -> str:
    found = case["floor"]["ceilings_of_one_thread"]
    speeds = f"products {found['product'] / 1e9:.0f} and convolutions {found['convolution'] / 1e9:.0f} GFLOP/s"
    return f"{speeds}, a copy {found['copy'] / 1e9:.1f} GB/s read and written"


def speed_figure(contents: Sequence[Mapping[str, Any]]) -> Figure:
    """Speed over that of each loop, for every case of one or several records.

    A case stands at the number of its coordinates; a bar reaches from the slowest round to the fastest.
    """
    loops = ("naive", "block_reuse", "naive_float64")
    found = [_series(content, loop, named=len(contents) > 1) for content in contents for loop in loops]
    return Figure(
        title="Queries a second over those of loops, by case",
        x_label="coordinates queried",
        y_label="times as fast",
        series=[series for series in found if len(series.x)],
        x_log=True,
        y_log=True,
    )


def _series(content: Mapping[str, Any], loop: str, *, named: bool) -> Series:
    key = f"{OURS}/{loop}"
    cases = sorted((c for c in content["cases"] if key in c["ratios"]), key=lambda case: case["coordinates"]["count"])
    ratios = [case["ratios"][key] for case in cases]
    threads = f", {_threads(content['environment']['threads'])}" if named else ""
    return Series(
        name=f"over the {TITLES[loop]}{threads}",
        x=[case["coordinates"]["count"] for case in cases],
        y=[ratio["median"] for ratio in ratios],
        spread=[(ratio["max"] - ratio["min"]) / 2 for ratio in ratios],
    )


def growth_figure(points: Sequence[Mapping[str, Any]]) -> Figure:
    """The cost of a query over that at the smallest size of its curve, which is linear where it follows the size."""
    series = []
    for curve, words in CURVES.items():
        own = sorted((point for point in points if point["curve"] == curve), key=lambda point: point["at"])
        if own:
            x = [point["at"] / own[0]["at"] for point in own]
            y = [point["seconds_per_query"] / own[0]["seconds_per_query"] for point in own]
            series.append(Series(name=words, x=x, y=y))
    longest = max((max(one.x) for one in series), default=1.0)
    series.append(Series(name="linear", x=[1.0, longest], y=[1.0, longest], reference=True))
    return Figure(
        title="How the cost of a query grows",
        x_label="size over the smallest of its curve",
        y_label="seconds of a query over those at the smallest",
        series=series,
        x_log=True,
        y_log=True,
    )
