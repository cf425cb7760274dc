"""Defended classifiers as documents: certified accuracy by radius, and the loss against queries."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from deepzero.files import json_object
from deepzero.report.figures import Document, Figure, Series, Table
from deepzero.report.folder_contents import RecordedRun, how_to_continue, metrics, surroundings
from deepzero.report.value_text import shown
from deepzero.text import duration

CERTIFIED = "certified.json"


def defense(run: RecordedRun) -> Document:
    """A defense as far as it went."""
    config = run.config["defense"]
    path = run.path / CERTIFIED
    found = json_object(path, advice="type deepzero certify again") if path.exists() else None
    summary = run.summary or {}
    return Document(
        title=f"{run.path.resolve().name}: {config['method']} in front of {run.config['target']}",
        caption=_caption(run, found),
        headline={
            "queries": shown(summary.get("queries")),
            "time": duration(summary["seconds"]) if "seconds" in summary else "unfinished",
            "sigma": f"{config['sigma']:g}",
            **({} if found is None else {"average certified radius": f"{found['average_certified_radius']:.3f}"}),
        },
        tables=[] if found is None else [_table(found)],
        figures=[*([] if found is None else [_curve(found)]), *_loss(run.path)],
        facts={
            "folder": str(run.path),
            "certification": {} if found is None else found["settings"],
            **surroundings(run),
        },
    )


def _caption(run: RecordedRun, found: dict[str, Any] | None) -> str:
    if run.summary is None:
        return f"This run has not finished. {how_to_continue(run)}"
    if found is None:
        command = f"deepzero certify {shlex.quote(str(run.path))}"
        return f"The pair of denoiser and classifier is not certified yet:\n\n    {command}"
    settings = found["settings"]
    return (
        f"Certified on {settings['images']} test images with {settings['trials']:,} noisy samples each, each "
        f"certificate with confidence {1 - settings['alpha']:.1%}."
    )


def _table(found: dict[str, Any]) -> Table:
    columns = [f"r = {radius:g}" for radius in found["radii"]]
    return Table(
        title="Certified accuracy",
        columns=[*columns, "abstained"],
        rows=[[f"{100 * a:.1f} %" for a in (*found["certified_accuracy"], found["abstained"])]],
        note="the share of images that are answered rightly on the whole ball of radius r",
    )


def _curve(found: dict[str, Any]) -> Figure:
    points = [(0.0, found["certified_accuracy"][0]), *((r, a) for r, a in found["curve"])]
    curve = Series(name="certified accuracy", x=[r for r, _ in points], y=[100 * a for _, a in points])
    return Figure(
        title="Certified accuracy against radius", x_label="radius", y_label="certified accuracy (%)", series=[curve]
    )


def _loss(path: Path) -> list[Figure]:
    steps = [record for record in metrics(path / "finetuning" / "metrics.jsonl") if record.get("kind") == "step"]
    if not steps:
        return []
    curve = Series(name="finetuning", x=[s["queries"] for s in steps], y=[s["loss"] for s in steps])
    return [Figure(title="Loss against queries", x_label="queries", y_label="stability loss", series=[curve])]
