"""The loss around the weights of a run, as a map."""

from __future__ import annotations

import math
from typing import Any

from deepzero.files import json_object
from deepzero.report.figures import HeatMap
from deepzero.report.folder_contents import Run
from deepzero.report.value_text import shown

SURFACE = "surface.json"
STEEP = 100.0
"""Ratio of the largest loss to the least from which colours stand for its logarithm."""


def surface_maps(run: Run) -> list[HeatMap]:
    """One map of the loss around the weights, if it was measured."""
    if not (run.path / SURFACE).exists():
        return []
    found = json_object(run.path / SURFACE)
    losses = found["losses"]
    known = [loss for row in losses for loss in row if loss is not None]
    steep = bool(known) and min(known) > 0 and max(known) > STEEP * min(known)
    values = [[None if loss is None else math.log10(loss) if steep else loss for loss in row] for row in losses]
    return [
        HeatMap(
            title="Loss around the weights",
            x_label="distance along the estimated gradient",
            y_label="distance along a random direction",
            value_label="log10 of the loss" if steep else "loss",
            x=found["distances"],
            y=found["distances"],
            values=values,
            contours=True,
            marks={"the weights": (0.0, 0.0)},
            note=_note(found, losses),
        )
    ]


def _note(found: dict[str, Any], losses: list[list[float | None]]) -> str:
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
