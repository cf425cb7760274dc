"""Training runs as documents: one each, and one that compares them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepzero.files import json_object, read_from
from deepzero.report.comparison import compare, folders
from deepzero.report.correction_pages import correction
from deepzero.report.defense_pages import defense
from deepzero.report.figures import Document, Figure, HeatMap, Span, curve
from deepzero.report.folder_contents import TEST, VALIDATION, RecordedRun, how_to_continue, points, read, surroundings
from deepzero.report.html import page
from deepzero.report.layers import layer_maps, layer_table, parameters
from deepzero.report.value_text import MISSING, flat, shown
from deepzero.text import duration
from deepzero.training.run_folder import STAGE, command_of
from deepzero.validation import fits

PAGES: Mapping[str, Callable[[RecordedRun], Document]] = {"defend": defense, "correct": correction}
"""Pages of runs by the command that makes them, for tasks with figures of their own."""
ACCURACY = "accuracy"
POINTS = 200
"""Of a curve, at most; neighbouring steps are averaged."""

SURFACE = "surface.json"
STEEP = 100.0
"""Ratio of the largest loss to the least from which colours stand for its logarithm."""


def documents(paths: Sequence[Path]) -> list[Document]:
    """The contents of several folders, in their order; before them a comparison if two or more are training runs.

    Args:
        paths: folders of training runs, or of reproductions (those with ``results.json``).

    Raises:
        RunFolderError: a folder holds neither.
    """
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    found = [read(path) for path in distinct.values()]
    runs = [item for item in found if isinstance(item, RecordedRun) and command_of(item.record) == "train"]
    comparison = []
    if len(runs) > 1:
        listed = ", ".join(str(run.path) for run in runs)
        with read_from(Path(listed), advice="show them one after the other to see which"):
            comparison = [compare(runs)]
    names = {run.path: name for run, name in zip(runs, folders(runs), strict=True)}
    return comparison + [_shown(item, names) for item in found]


def page_of(paths: Sequence[Path]) -> str:
    """The contents of several folders as the text of an HTML file.

    Args:
        paths: as in :func:`documents`.

    Raises:
        RunFolderError: a folder holds neither a run nor results, or its files are damaged.
    """
    found = documents(paths)
    title = found[0].title if len(paths) == 1 else f"Report on {len(paths)} runs"
    with read_from(Path(", ".join(map(str, paths))), advice="leave out the folder whose files are damaged"):
        text = page(found, title=title)
        text.encode()
        return text


def _shown(item: RecordedRun | Document, names: Mapping[Path, str]) -> Document:
    if isinstance(item, Document):
        return item
    with read_from(item.path, advice="put its files back as they were, or leave this folder out"):
        if item.path in names:
            return document(item, names[item.path])
        return PAGES.get(command_of(item.record), outcome)(item)


def outcome(run: RecordedRun) -> Document:
    """A run of a task without figures of its own: the numbers of its summary, and everything it depends on."""
    command, summary = command_of(run.record), run.summary or {}
    numbers = {name: shown(value) for name, value in summary.items() if isinstance(value, int | float)}
    return Document(
        title=f"{run.path.resolve().name}: deepzero {command}",
        caption="" if run.summary else f"This run has not finished. {how_to_continue(run)}",
        headline=numbers | ({"seconds": duration(summary["seconds"])} if "seconds" in summary else {}),
        facts={"folder": str(run.path), **surroundings(run)},
    )


def document(run: RecordedRun, name: str) -> Document:
    """A run as far as it went: headline, curves, layers, and everything it depends on."""
    return Document(
        title=f"{name}: {_what(run)}",
        caption=_caption(run),
        headline=_headline(run),
        tables=layer_table(run),
        figures=[*_measures(run), _losses(run), *_schedules(run)],
        maps=[*layer_maps(run), *_surface_maps(run)],
        facts=_facts(run),
    )


def _what(run: RecordedRun) -> str:
    settings = flat(run.config)
    sparsity = settings.get("sparsity.sparsity")
    sparse = f", {sparsity:.0%} sparse" if sparsity else ""
    model, method = (settings.get(f"{part}.{key}") for part, key in (("model", "name"), ("estimator", "method")))
    if model is None:
        return f"{settings.get('model.class', 'a network')}, {settings.get('estimator.class', 'trained')}"
    data = settings.get("data.path") or settings.get("data.name")
    return f"{_last(str(model))} on {_last(str(data))}, {method}{sparse}"


def _last(path: str) -> str:
    """A name as it is; of a path of the user's own, its last part: ``nets/own.py:Net`` becomes ``own.py:Net``."""
    return path.rpartition("/")[2]


def _caption(run: RecordedRun) -> str:
    if run.summary is not None:
        epoch = f"Weights of epoch {run.summary['selected_epoch'] + 1}"
        selected = f"{epoch}, selected on the validation split" if run.validations else f"{epoch}, the last"
        return f"{selected}; the test set was used once, at the end." if run.tests else f"{selected}."
    so_far = f"step {run.steps[-1]['step']:,}, epoch {run.steps[-1]['epoch'] + 1}" if run.steps else "no step yet"
    epochs = flat(run.config).get("training.epochs")
    state = f"This run has not finished: {so_far}{'' if epochs is None else f', of {epochs} epochs'}."
    if "recipe" not in run.record and STAGE not in run.config:
        return f"{state} It was started from Python; to continue it, call it again with resume=True."
    return f"{state} {how_to_continue(run)}"


def _headline(run: RecordedRun) -> dict[str, str]:
    last = run.records[-1] if run.records else {"queries": 0, "seconds": 0.0}
    counted = parameters(run)
    return {
        **_scores(run),
        "queries": shown(last["queries"]),
        "queries of a step": _queries_of_a_step(run),
        "time": duration(last["seconds"]),
        "start-up and step 1": MISSING if run.start_up is None else duration(run.start_up),
        "parameters": shown(counted),
        "sparsity": f"{flat(run.config).get('sparsity.sparsity') or 0:.1%}",
    }


def _scores(run: RecordedRun) -> dict[str, str]:
    summary = run.summary
    if summary is None:
        best = run.best(ACCURACY)
        return {"state": "unfinished", **({} if best is None else {"best validation accuracy": f"{best:.2%}"})}
    keys = [f"{split}{name}" for name in run.measures or ["loss"] for split in (TEST, VALIDATION)]
    found = {key: summary.get(key) for key in keys}
    shares = [f"{split}{ACCURACY}" for split in (TEST, VALIDATION)]
    return {
        key.replace("_", " "): f"{value:.2%}" if key in shares else shown(value)
        for key, value in found.items()
        if value is not None
    }


def _per_step(run: RecordedRun) -> list[tuple[int, int]]:
    """Each step but the first (whose queries may include those of the ratios), and its queries."""
    return [(b["step"], b["queries"] - a["queries"]) for a, b in pairwise(run.steps) if b["step"] == a["step"] + 1]


def _queries_of_a_step(run: RecordedRun) -> str:
    counts = [count for _, count in _per_step(run)]
    if not counts or min(counts) == max(counts):
        return shown(counts[0] if counts else None)
    return f"{min(counts):,} to {max(counts):,}"


def _measures(run: RecordedRun) -> list[Figure]:
    """The measures on the validation split, against queries and against seconds; the test beside them."""
    return [_measure(run, name, axis) for name in run.measures for axis in ("queries", "seconds")]


def _measure(run: RecordedRun, name: str, axis: str) -> Figure:
    scale, unit = (100.0, "%") if name == ACCURACY else (1.0, "")
    curves = [curve("validation", points(run.validations, axis, VALIDATION + name, scale=scale))]
    for at, value in points(run.tests, axis, TEST + name, scale=scale):
        curves.append(curve(f"test {value:.2f}{unit}" if unit else f"test {shown(value)}", [(at, value)]))
    return Figure(
        title=f"{name.replace('_', ' ').capitalize()} against {axis}",
        x_label=axis,
        y_label=f"{name.replace('_', ' ')}{f' ({unit})' if unit else ''}",
        series=curves,
        x_from_zero=True,
        spans=_start_up(run) if axis == "seconds" else [],
    )


def _start_up(run: RecordedRun) -> list[Span]:
    if run.start_up is None:
        return []
    return [Span(name=f"start-up and first step: {duration(run.start_up)}", start=0.0, end=run.start_up)]


def _losses(run: RecordedRun) -> Figure:
    curves = [
        curve("training, steps", _thinned(points(run.steps, "queries", "loss"))),
        curve("training, epoch mean", points(run.epochs, "queries", "training_loss")),
        curve("validation", points(run.validations, "queries", f"{VALIDATION}loss")),
    ]
    return Figure(title="Loss against queries", x_label="queries", y_label="loss", series=curves, x_from_zero=True)


def _schedules(run: RecordedRun) -> list[Figure]:
    """The learning rate, and the queries of a step if their number changes."""
    rates = _thinned(points(run.steps, "step", "learning_rate"))
    figures = [_against_steps("Learning rate", "learning rate", rates)]
    counts = _per_step(run)
    if len({count for _, count in counts}) > 1:
        figures.append(_against_steps("Queries of a step", "queries", _thinned(counts)))
    return figures


def _against_steps(title: str, label: str, drawn: Sequence[tuple[float, float]]) -> Figure:
    return Figure(title=title, x_label="step", y_label=label, series=[curve(label, drawn)])


def _thinned(curve_points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`POINTS` points, each the mean of some neighbours, at the place of the last of them."""
    size = -(-len(curve_points) // POINTS)
    groups = [curve_points[start : start + size] for start in range(0, len(curve_points), max(size, 1))]
    return [(group[-1][0], statistics.fmean(y for _, y in group)) for group in groups]


def _facts(run: RecordedRun) -> dict[str, Any]:
    summary = run.summary or {}
    settings = run.record.get("settings") or {}
    return {
        "folder": str(run.path),
        "recipe": run.record.get("recipe"),
        "changed settings": ", ".join(f"{name} {shown(value)}" for name, value in settings.items()),
        **{key: summary[key] for key in ("steps", "queries_for_ratios", "test_loss", "processes") if key in summary},
        **surroundings(run),
    }


def _surface_maps(run: RecordedRun) -> list[HeatMap]:
    """One map of the loss around the weights, if it was measured."""
    if not (run.path / SURFACE).exists():
        return []
    with read_from(run.path / SURFACE, advice="measure it again with --surface"):
        return [_surface_map(json_object(run.path / SURFACE, advice="measure it again with --surface"))]


def _surface_map(found: Mapping[str, Any]) -> HeatMap:
    losses = found["losses"]
    if not fits(losses, Sequence[Sequence[float | None]]) or not fits(found["distances"], Sequence[float]):
        raise TypeError("losses and distances must be numbers")
    known = [loss for row in losses for loss in row if loss is not None]
    steep = bool(known) and min(known) > 0 and max(known) > STEEP * min(known)
    values = [[None if loss is None else math.log10(loss) if steep else loss for loss in row] for row in losses]
    return HeatMap(
        title="Loss around the weights",
        x_label="distance along the estimated gradient",
        y_label="distance along a random direction",
        value_label="log10 of the loss" if steep else "loss",
        x=found["distances"],
        y=found["distances"],
        values=values,
        contours=True,
        marks={"the weights": (0.0, 0.0)},
        note=_surface_note(found, losses),
    )


def _surface_note(found: Mapping[str, Any], losses: list[list[float | None]]) -> str:
    missing = sum(loss is None for row in losses for loss in row)
    slope = "not finite" if found["slope"] is None else shown(float(f"{found['slope']:.3g}"))
    parts = [
        f"Around {found['weights']}, on {found['batch']} training images: {len(losses) ** 2:,} function values, and "
        f"{found['gradient_queries']:,} for the gradient.",
        f"Distances are between all weights together, whose norm is {found['weight_norm']:.3g}; both directions have "
        "length 1 and are at right angles.",
        f"To the right of the weights the loss should rise: by {found['gradient_norm']:.3g} a unit of distance "
        f"according to the estimate, by {slope} between the points beside the weights.",
    ]
    if missing:
        parts.append(f"Grey: {missing} places where the loss is not finite.")
    return " ".join(parts)
