"""Which part of each layer a run queries."""

from __future__ import annotations

import math
import re

from deepzero.report.reading import Run
from deepzero.report.records import Table
from deepzero.report.values import MISSING, flat

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
COLUMNS = ("layer", "shape", "weights", "kept", "keep ratio")


def parameters(run: Run) -> int | None:
    """How many parameters are trained; None as long as no weights are stored."""
    if run.summary is not None:
        return int(run.summary["parameters"])
    sizes = [math.prod(shape) for name, shape in run.shapes.items() if not name.endswith(BUFFERS)]
    return sum(sizes) if sizes else None


def layer_table(run: Run) -> list[Table]:
    """One table: size, kept weights and keep ratio of each layer; none for a run that keeps everything.

    The kept weights of a layer are its keep ratio times its size, rounded.
    """
    if not run.keep:
        return []
    rows = [_row(run, name) for name in sorted(run.keep, key=_natural)]
    return [
        Table(
            title="Weights that a step estimates, by layer",
            columns=COLUMNS,
            rows=[*rows, *_totals(run)],
            note=_note(run),
            bars=["keep ratio"],
        )
    ]


def _row(run: Run, name: str) -> tuple[str, ...]:
    ratio = f"{run.keep[name]:.1%}"
    if name not in run.shapes:
        return (name, MISSING, MISSING, MISSING, ratio)
    shape, size = run.shapes[name], math.prod(run.shapes[name])
    return (name, "\u00d7".join(map(str, shape)), f"{size:,}", f"{round(run.keep[name] * size):,}", ratio)


def _totals(run: Run) -> list[tuple[str, ...]]:
    """Everything else, and all together, where sizes are known."""
    total = parameters(run)
    if total is None or any(name not in run.shapes for name in run.keep):
        return []
    sizes = {name: math.prod(run.shapes[name]) for name in run.keep}
    kept = sum(round(run.keep[name] * size) for name, size in sizes.items())
    rest = total - sum(sizes.values())
    others = [("others (biases, norms)", "", f"{rest:,}", f"{rest:,}", "100.0%")] if rest else []
    return [*others, ("all", "", f"{total:,}", f"{kept + rest:,}", f"{(kept + rest) / total:.1%}")]


def _note(run: Run) -> str:
    given = flat(run.config)
    if given.get("sparsity.pattern") == "static":
        return "The same weights at every step."
    every, unit = given.get("sparsity.every", 1), given.get("sparsity.unit", "step")
    often = f"every {unit}" if every == 1 else f"every {every} {unit}s"
    return f"Drawn at random under these ratios, anew {often}."


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``layer.10`` behind ``layer.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
