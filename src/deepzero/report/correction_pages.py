"""Corrected simulations as documents: errors over time, the curve of the training, and pictures of the flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepzero.files import json_object, read_from, read_tensors, replace_file
from deepzero.report.figures import Document, Figure, Picture, Series, Table
from deepzero.report.folder_contents import RecordedRun, how_to_continue, surroundings
from deepzero.report.value_text import shown
from deepzero.text import duration
from deepzero.training.run_folder import writing

if TYPE_CHECKING:
    from deepzero.report.pictures import Fields

ERRORS, FIELDS = "errors.json", "fields.safetensors"
PANELS = ("source", "corrected", "reference")
VORTICITY, FILM = "vorticity", "vorticity.gif"


def correction(run: RecordedRun) -> Document:
    """A correction as far as it went; its pictures are written into the folder, too."""
    config = run.config["correction"]
    summary = run.summary or {}
    return Document(
        title=f"{run.path.resolve().name}: {config['method']}, {config['unroll']} unrolled steps",
        caption=_caption(run),
        headline=_headline(summary),
        tables=[] if run.summary is None else [_table(run)],
        figures=[] if run.summary is None else [_by_step(run), *_curves(summary)],
        pictures=[] if run.summary is None else _pictures(run),
        facts={"folder": str(run.path), **surroundings(run)},
    )


def _caption(run: RecordedRun) -> str:
    if run.summary is None:
        return f"This run has not finished. {how_to_continue(run)}"
    return (
        "Every test flow is simulated by the coarse solver with the network's correction after every step, from the "
        "first frame of the reference to its last. Errors are means of absolute differences from the reference over "
        "all faces of the grid."
    )


def _headline(summary: Mapping[str, Any]) -> dict[str, str]:
    if not summary:
        return {}
    mae, source = summary["mae"], summary["source_mae"]
    ratio = "—" if mae is None or not source else f"{mae / source:.3f}"
    return {
        "mean absolute error": "blew up" if mae is None else f"{mae:.4f}",
        "the solver alone": "blew up" if source is None else f"{source:.4f}",
        "ratio": ratio,
        "solver calls": shown(summary["solver_calls"]),
        "without an answer": shown(summary["skipped"]),
        "time of the training": duration(summary["training_seconds"]),
    }


def _table(run: RecordedRun) -> Table:
    errors = json_object(run.path / ERRORS)
    rows = [
        [f"{reynolds:g}", *("blew up" if e is None else f"{e:.4f}" for e in (mae, source))]
        for reynolds, mae, source in zip(errors["reynolds"], errors["mae"], errors["source_mae"], strict=True)
    ]
    return Table(
        title="Mean absolute error by test flow", columns=["Reynolds number", "corrected", "solver alone"], rows=rows
    )


def _by_step(run: RecordedRun) -> Figure:
    errors = json_object(run.path / ERRORS)
    series = []
    for name, key in (("corrected", "by_step"), ("solver alone", "source_by_step")):
        known = [(k + 1.0, e) for k, e in enumerate(errors[key]) if e is not None]
        series.append(Series(name=name, x=[x for x, _ in known], y=[y for _, y in known]))
    return Figure(title="Error over time", x_label="step", y_label="mean absolute error", series=series, y_log=True)


def _curves(summary: Mapping[str, Any]) -> list[Figure]:
    points = [point for point in summary["curve"] if point["mae"] is not None]
    if len({point["solver_calls"] for point in points}) < 2:
        return []
    curve = Series(name=summary["method"], x=[p["solver_calls"] for p in points], y=[p["mae"] for p in points])
    return [
        Figure(
            title="Error on the test flows against solver calls of the training",
            x_label="solver calls",
            y_label="mean absolute error",
            series=[curve],
        )
    ]


def still(folder: Path) -> dict[str, str]:
    """Vorticity of one test flow at its last frame, as title and source of a picture."""
    from deepzero.report.pictures import embedded, panels, png  # noqa: PLC0415 - with Matplotlib

    frames, titles = _fields(folder)
    return asdict(embedded(png(panels(frames[-1], title=titles[-1])), title=titles[-1], kind="png"))


def _fields(folder: Path) -> tuple[list[Fields], list[str]]:
    """Panels of every kept frame, and what they show."""
    found = {name: field.numpy() for name, field in read_tensors(folder / FIELDS).items()}
    tests = json_object(folder / ERRORS)["reynolds"]
    with read_from(folder, advice="put its files back as they were"):
        titles = [f"vorticity at Reynolds number {tests[len(tests) // 2]:g}, step {time}" for time in found["times"]]
        return [{name: _seen(found[name][k]) for name in PANELS} for k in range(len(titles))], titles


def _pictures(run: RecordedRun) -> list[Picture]:
    """Vorticity of one test flow: at the last frame, and over time."""
    from deepzero.report.pictures import animation, embedded, panels, png, svg  # noqa: PLC0415 - with Matplotlib

    frames, titles = _fields(run.path)
    last = panels(frames[-1], title=titles[-1])
    image, film = png(last), animation(frames, titles)
    with writing(run.path):
        replace_file(run.path / f"{VORTICITY}.png", image)
        replace_file(run.path / f"{VORTICITY}.svg", svg(last))
        replace_file(run.path / FILM, film)
    return [
        embedded(image, title=titles[-1], kind="png"),
        embedded(film, title=f"{titles[0]} and on", kind="gif"),
    ]


def _seen(field: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The field, with 0 where the flow has blown up."""
    return np.where(np.isfinite(field), field, 0.0)
