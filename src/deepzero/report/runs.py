"""Training runs as documents: one each, and one that compares them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepzero.report.comparison import compare, folders
from deepzero.report.corrections import correction, is_correction
from deepzero.report.defenses import defense, is_defense
from deepzero.report.layers import layer_maps, layer_table, parameters
from deepzero.report.reading import Run, how_to_continue, read, surroundings
from deepzero.report.records import Document, Figure, Series, Span
from deepzero.report.values import MISSING, duration, flat, shown

POINTS = 200
"""Of a curve, at most; neighbouring steps are averaged."""


def documents(paths: Sequence[Path]) -> list[Document]:
    """What several folders hold, in their order; before them a comparison if two or more are training runs.

    Args:
        paths: folders of training runs, or of reproductions (those with ``results.json``).

    Raises:
        RunFolderError: a folder holds neither.
    """
    distinct: dict[Path, Path] = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    found = [read(path) for path in distinct.values()]
    runs = [item for item in found if isinstance(item, Run) and not (is_defense(item) or is_correction(item))]
    comparison = [compare(runs)] if len(runs) > 1 else []
    names = {run.path: name for run, name in zip(runs, folders(runs), strict=True)}
    return comparison + [_shown(item, names) for item in found]


def _shown(item: Run | Document, names: Mapping[Path, str]) -> Document:
    if isinstance(item, Document):
        return item
    if is_correction(item):
        return correction(item)
    return defense(item) if is_defense(item) else document(item, names[item.path])


def document(run: Run, name: str) -> Document:
    """A run as far as it went: headline, curves, layers, and everything it depends on."""
    return Document(
        title=f"{name}: {_what(run.config)}",
        caption=_caption(run),
        headline=_headline(run),
        tables=layer_table(run),
        figures=[_accuracy(run, "queries"), _accuracy(run, "seconds"), _losses(run), *_schedules(run)],
        maps=layer_maps(run),
        facts=_facts(run),
    )


def _what(config: Mapping[str, Any]) -> str:
    given = flat(config)
    sparsity = given.get("sparsity.sparsity")
    sparse = f", {sparsity:.0%} sparse" if sparsity else ""
    return f"{given.get('model.name')} on {given.get('data.name')}, {given.get('estimator.method')}{sparse}"


def _caption(run: Run) -> str:
    if run.summary is not None:
        return (
            f"Weights of epoch {run.summary['selected_epoch'] + 1}, selected on the validation split; "
            "the test set was used once, at the end."
        )
    so_far = f"step {run.steps[-1]['step']:,}, epoch {run.steps[-1]['epoch'] + 1}" if run.steps else "no step yet"
    state = f"This run has not finished: {so_far}, of {flat(run.config).get('training.epochs')} epochs."
    if "recipe" not in run.record:
        return f"{state} It was started from Python; to continue it, call train again with resume=True."
    return f"{state} {how_to_continue(run, 'train')}"


def _headline(run: Run) -> dict[str, str]:
    last = run.records[-1] if run.records else {"queries": 0, "seconds": 0.0}
    counted = parameters(run)
    return {
        **_scores(run),
        "queries": shown(last["queries"]),
        "queries of a step": _queries_of_a_step(run),
        "time": duration(last["seconds"]),
        "of it, to the end of step 1": MISSING if run.start_up is None else duration(run.start_up),
        "parameters": shown(counted),
        "sparsity": f"{flat(run.config).get('sparsity.sparsity') or 0:.1%}",
    }


def _scores(run: Run) -> dict[str, str]:
    best = max((record["validation_accuracy"] for record in run.validations), default=None)
    validation = {} if best is None else {"best validation accuracy": f"{best:.2%}"}
    if run.summary is None:
        return {"state": "unfinished", **validation}
    selected = run.summary.get("validation_accuracy")
    validation = {} if selected is None else {"validation accuracy": f"{selected:.2%}"}
    return {"test accuracy": f"{run.summary['test_accuracy']:.2%}", **validation}


def _per_step(run: Run) -> list[tuple[int, int]]:
    """Each step but the first (whose queries may include those of the ratios), and its queries."""
    return [(b["step"], b["queries"] - a["queries"]) for a, b in pairwise(run.steps) if b["step"] == a["step"] + 1]


def _queries_of_a_step(run: Run) -> str:
    counts = [count for _, count in _per_step(run)]
    if not counts or min(counts) == max(counts):
        return shown(counts[0] if counts else None)
    return f"{min(counts):,} to {max(counts):,}"


def _accuracy(run: Run, axis: str) -> Figure:
    curves = [
        Series(
            name="validation",
            x=[record[axis] for record in run.validations],
            y=[100 * record["validation_accuracy"] for record in run.validations],
        )
    ]
    for test in run.tests:
        accuracy = 100 * test["test_accuracy"]
        curves.append(Series(name=f"test {accuracy:.2f}%", x=[test[axis]], y=[accuracy]))
    return Figure(
        title=f"Accuracy against {axis}",
        x_label=axis,
        y_label="accuracy (%)",
        series=curves,
        x_from_zero=True,
        spans=_start_up(run) if axis == "seconds" else [],
    )


def _start_up(run: Run) -> list[Span]:
    if run.start_up is None:
        return []
    return [Span(name=f"start-up and first step: {duration(run.start_up)}", start=0.0, end=run.start_up)]


def _losses(run: Run) -> Figure:
    each = _thinned([(record["queries"], record["loss"]) for record in run.steps])
    curves = [
        Series(name="training, steps", x=[x for x, _ in each], y=[y for _, y in each]),
        _loss("training, epoch mean", run.epochs, "training_loss"),
        _loss("validation", run.validations, "validation_loss"),
    ]
    return Figure(title="Loss against queries", x_label="queries", y_label="loss", series=curves, x_from_zero=True)


def _loss(name: str, records: Sequence[Mapping[str, Any]], key: str) -> Series:
    return Series(name=name, x=[record["queries"] for record in records], y=[record[key] for record in records])


def _schedules(run: Run) -> list[Figure]:
    """The learning rate, and the queries of a step if their number changes."""
    rates = _thinned([(record["step"], record["learning_rate"]) for record in run.steps])
    figures = [_against_steps("Learning rate", "learning rate", rates)]
    counts = _per_step(run)
    if len({count for _, count in counts}) > 1:
        figures.append(_against_steps("Queries of a step", "queries", _thinned(counts)))
    return figures


def _against_steps(title: str, label: str, points: Sequence[tuple[float, float]]) -> Figure:
    curve = Series(name=label, x=[x for x, _ in points], y=[y for _, y in points])
    return Figure(title=title, x_label="step", y_label=label, series=[curve])


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`POINTS` points, each the mean of some neighbours, at the place of the last of them."""
    size = -(-len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(group[-1][0], statistics.fmean(y for _, y in group)) for group in groups]


def _facts(run: Run) -> dict[str, Any]:
    summary = run.summary or {}
    settings = run.record.get("settings") or {}
    return {
        "folder": str(run.path),
        "recipe": run.record.get("recipe"),
        "changed settings": ", ".join(f"{name} {shown(value)}" for name, value in settings.items()),
        **{key: summary[key] for key in ("steps", "queries_for_ratios", "test_loss", "processes") if key in summary},
        **surroundings(run),
    }
