"""A diagnosis for people to read, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from deepzero.doctor.determinism import Determinism
from deepzero.doctor.diagnosis import Diagnosis
from deepzero.doctor.forecast import Forecast, RunCost
from deepzero.doctor.gradient_check import GradientCheck, LayerCheck
from deepzero.doctor.metered_objective import QueryCheck
from deepzero.doctor.operations import Operations
from deepzero.doctor.step_choice import StepChoice
from deepzero.doctor.sweep import Sweep
from deepzero.text import duration

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan", "good": "green"}
ROWS = 8
"""Rows of a table of layers; the most notable ones."""


def render(found: Diagnosis) -> Iterator[RenderableType]:
    """The verdict, then one block after another; advice comes last, where a terminal shows it."""
    style = STYLES["error" if not found.healthy else "warning" if found.verdict.startswith("fit, but") else "good"]
    yield Text.assemble(("verdict: ", "bold"), (found.verdict, style))
    yield _lines("Objective", _objective(found.determinism, found.queries))
    if found.queries is not None:
        yield _lines("Queries", _queries(found.queries))
    if found.operations is not None:
        yield _lines("Operations", _operations(found.operations))
    if found.plan:
        yield _lines("Plan", iter(found.plan))
    if found.sweep is not None:
        yield _sweep(found.sweep)
        yield _lines("Step size", _step(found.step))
    if found.gradients is not None:
        yield _gradients(found.gradients)
    if found.forecast is not None:
        yield _lines("Forecast", _forecast(found.forecast, found.run))
    yield Text("Advice", style="bold")
    for finding in found.findings:
        yield Text.assemble("  ", (f"{finding.level}: ", STYLES[finding.level]), finding.text)


def _lines(title: str, lines: Iterator[str]) -> Text:
    return Text.assemble((title, "bold"), *(f"\n  {line}" for line in lines))


def _objective(found: Determinism, queries: QueryCheck | None) -> Iterator[str]:
    mode = f", {found.mode} mode" if found.mode else ""
    yield f"loss {'not finite' if found.loss is None else f'{found.loss:.6g}'}{mode}"
    same = "with the same seed" if queries is None else "at the same parameters"
    if found.repeatable:
        yield f"deterministic: evaluations {same} agree bitwise"
    else:
        spread = (
            "" if queries is None else f" (give or take {queries.noise_uncertainty:.0%}, {queries.repeats} queries)"
        )
        yield f"NOT deterministic: evaluations {same} scatter by {found.noise:.1e}{spread}"


def _queries(found: QueryCheck) -> Iterator[str]:
    yield f"{found.queries} were made, of {found.max_queries} allowed"
    yield (
        f"{duration(found.seconds)} each (median; {duration(found.fastest)} to {duration(found.slowest)}, the first "
        f"{duration(found.first)})"
    )
    if found.rounding is not None:
        yield f"noise between points close together: {found.rounding:.1e}"
    if found.failures:
        yield f"failed: {len(found.failures)}"


def _operations(found: Operations) -> Iterator[str]:
    if found.problem is not None:
        yield "differences cannot be propagated (see advice)"
        return
    yield f"with a rule: {_counted(found.rules) or 'none'}"
    yield f"fall back: {_counted(found.fallbacks) or 'none'}" + (
        f", on the way of {found.behind_fallbacks:.0%} of the coordinates" if found.fallbacks else ""
    )


def _counted(operations: dict[str, int]) -> str:
    return ", ".join(f"{name.removeprefix('aten.')} x{count}" for name, count in operations.items())


def _sweep(found: Sweep) -> Table:
    title = f"Relative error against step size ({found.samples} directions; reference: {found.reference})"
    table = Table(
        "step size", *(f"{c.evaluator}\n{c.stencil}" for c in found.curves), title=title, title_justify="left"
    )
    for row in zip(*(curve.points for curve in found.curves), strict=True):
        table.add_row(f"{row[0].step_size:.1e}", *(_number(point.error) for point in row))
    floors = [f"{found.noise_floor[c.evaluator]:.1e}" if c.evaluator in found.noise_floor else "" for c in found.curves]
    table.add_section()
    table.add_row("noise floor", *floors)
    return table


def _step(choice: StepChoice | None) -> Iterator[str]:
    if choice is None:
        yield "none can be recommended (see advice)"
        return
    yield f"recommended: {choice.step_size:.1e} ({choice.evaluator}, {choice.stencil}): {choice.reason}"
    yield f"there: relative error {_number(choice.error)} ({choice.samples} directions)" + (
        "" if choice.plain_error is None else f"; by plain differences {_number(choice.plain_error)}"
    )
    yield f"configured: {choice.configured:.1e}, relative error {_number(choice.configured_error)}: " + (
        "good enough" if choice.as_good else "worse"
    )


def _gradients(found: GradientCheck) -> Table:
    against = f"against {found.reference}" if found.reference else "(no autograd to compare with)"
    overall = f"cosine {_number(found.cosine, '.4f')}, relative error {_number(found.relative_error)}"
    title = f"Estimate at the configured step {against}: {overall}"
    columns = ("tried", "exactly 0", "norm", "cosine", "error")
    table = Table(Column("parameter", overflow="fold"), *columns, title=title, title_justify="left")
    rows = sorted(found.layers, key=_concern)[:ROWS]
    for row in rows:
        cells = (_number(row.norm), _number(row.cosine, ".4f"), _number(row.relative_error))
        table.add_row(row.name, str(row.samples), f"{row.zeros:.0%}", *cells)
    if len(found.layers) > len(rows):
        table.caption = f"the {len(rows)} that agree least, of {len(found.layers)} parameters"
    return table


def _concern(layer: LayerCheck) -> float:
    """Sorts the layers that agree least to the front."""
    return -(layer.relative_error if layer.relative_error is not None else layer.zeros)


def _forecast(found: Forecast, run: RunCost | None) -> Iterator[str]:
    how = {
        "timed": "mean of whole estimates",
        "cost table": "added up from the measured cost table",
        "one query": "queries times one query",
    }[found.method]
    yield f"{found.queries:,} queries and {duration(found.seconds_per_step)} a step ({how})"
    if run is not None:
        price = "" if run.price is None else f", price {run.price:,.2f}"
        yield f"{run.steps:,} steps: {run.queries:,} queries, {duration(run.seconds)}{price}"
        for way in run.methods:
            yield (
                f"{way.method} with {way.directions:,} directions: {way.queries:,} queries a step, {way.steps:,} steps "
                f"for as many, cosine {way.cosine:.2f}"
            )
    if found.loop is not None and found.seconds_per_epoch is not None and found.seconds_of_run is not None:
        loop = found.loop
        yield f"{duration(found.seconds_per_epoch)} an epoch of {loop.steps_per_epoch} steps"
        scores = f" and the scores before them ({duration(loop.startup)})" if loop.startup else ""
        yield f"{duration(found.seconds_of_run)} for {loop.epochs} epochs{scores}"
        validation = f", {duration(loop.epoch_overhead)} an epoch (validation)" if loop.epoch_overhead else ""
        yield f"beside the estimates: {duration(loop.step_overhead)} a step{validation}"
    if found.memory is not None and found.memory_budget is not None:
        used, allowed = (f"{size / 2**20:,.0f} MiB" for size in (found.memory, found.memory_budget))
        yield f"memory beyond model and batch: {used} of {allowed} allowed"
    yield f"base forward: {duration(found.base_seconds)}"
    total = found.base_seconds + sum(layer.seconds for layer in found.layers)
    for layer in found.layers[:ROWS]:
        share = layer.seconds / total
        yield f"{share:6.1%}  {layer.name}: {layer.coordinates:,} coordinates, {duration(layer.seconds)}"


def _number(value: float | None, form: str = ".1e") -> str:
    return "-" if value is None else format(value, form)
