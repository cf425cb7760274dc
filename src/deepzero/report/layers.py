"""The part of each layer that a run queries."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from deepzero.report.figures import HeatMap, Table
from deepzero.report.folder_contents import RecordedRun
from deepzero.report.value_text import MISSING, flat

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
KEPT = "kept/"
COLUMNS = ("layer", "shape", "weights", "kept", "keep ratio")


def parameters(run: RecordedRun) -> int | None:
    """Number of parameters that are trained; None as long as no weights are stored."""
    if run.summary is not None:
        return int(run.summary["parameters"])
    sizes = [math.prod(shape) for name, shape in run.shapes.items() if not name.endswith(BUFFERS)]
    return sum(sizes) if sizes else None


def layer_table(run: RecordedRun) -> list[Table]:
    """One table: size, kept weights and keep ratio of each layer; none for a run that keeps everything.

    The kept weights of a layer are its keep ratio times its size, rounded.
    """
    if not run.keep:
        return []
    rows = [_row(run, name) for name in _in_order(run, run.keep)]
    return [
        Table(
            title="Weights that a step estimates, by layer",
            columns=COLUMNS,
            rows=[*rows, *_totals(run)],
            note=_note(run),
            bars=["keep ratio"],
        )
    ]


def layer_maps(run: RecordedRun) -> list[HeatMap]:
    """One map: the part of each layer that was queried, over the epochs; none for a run whose records do not say it."""
    records = [record for record in run.epochs if any(key.startswith(KEPT) for key in record)]
    names = list(dict.fromkeys(key.removeprefix(KEPT) for record in records for key in record if key.startswith(KEPT)))
    if not names:
        return []
    values = [[_in_percent(record.get(KEPT + name)) for record in records] for name in names]
    return [
        HeatMap(
            title="Weights queried, by layer and epoch",
            x_label="epoch",
            y_label="layer",
            value_label="queried (%)",
            x=[record["epoch"] + 1 for record in records],
            y=[name.removesuffix(".weight") for name in names],
            values=values,
            limits=(0.0, max(value or 0.0 for row in values for value in row)),
            note="Share of a layer's weights that the last step of an epoch estimates; the first layer at the top.",
        )
    ]


def _in_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _in_order(run: RecordedRun, names: Iterable[str]) -> list[str]:
    """In the order of the network; where a run of an earlier version does not tell it, by name."""
    if "parameters" in run.record:
        places = {name: place for place, name in enumerate(run.shapes)}
        return sorted(names, key=lambda name: places.get(name, len(places)))
    return sorted(names, key=_natural)


def _row(run: RecordedRun, name: str) -> tuple[str, ...]:
    ratio = f"{run.keep[name]:.1%}"
    if name not in run.shapes:
        return (name, MISSING, MISSING, MISSING, ratio)
    shape, size = run.shapes[name], math.prod(run.shapes[name])
    return (name, "\u00d7".join(map(str, shape)), f"{size:,}", f"{round(run.keep[name] * size):,}", ratio)


def _totals(run: RecordedRun) -> list[tuple[str, ...]]:
    """Everything else, and all together, where sizes are known."""
    total = parameters(run)
    if total is None or any(name not in run.shapes for name in run.keep):
        return []
    sizes = {name: math.prod(run.shapes[name]) for name in run.keep}
    kept = sum(round(run.keep[name] * size) for name, size in sizes.items())
    rest = total - sum(sizes.values())
    others = [("others (biases, norms)", "", f"{rest:,}", f"{rest:,}", "100.0%")] if rest else []
    return [*others, ("all", "", f"{total:,}", f"{kept + rest:,}", f"{(kept + rest) / total:.1%}")]


def _note(run: RecordedRun) -> str:
    settings = flat(run.config)
    if settings.get("sparsity.pattern") == "static":
        return "The same weights at every step."
    every, unit = settings.get("sparsity.every", 1), settings.get("sparsity.unit", "step")
    often = f"every {unit}" if every == 1 else f"every {every} {unit}s"
    return f"Drawn at random under these ratios, again {often}."


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``layer.10`` behind ``layer.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
