"""Numbers over a grid as SVG: colours, and lines of equal value."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepzero.extras import required_for
from deepzero.report.figures import HeatMap
from deepzero.report.svg import LEGEND_LINE, NARROW, STYLE, Sheet, digest, tick, titled, written

with required_for("a figure"):
    import matplotlib.style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter, MaxNLocator

COLORS = "viridis"
"""Told apart with any colour vision, and by lightness alone."""

NOTHING = "#d9d9d9"
ROW = 0.17  # inches of a row with a name
MOST_NAMES = 40
LEVELS = 9


def draw_map(shown: HeatMap, *, name: str | None = None, sheet: Sheet = NARROW) -> str:
    """The map as the text of an SVG file; places without a number are grey.

    Args:
        shown: the map to draw.
        name: begins all identifiers inside, so that they are unique in a page; by default it follows from the map.
        sheet: its width and height; rows that have names make it as high as they need.

    >>> labels = {"title": "Kept", "x_label": "epoch", "y_label": "layer", "value_label": "%"}
    >>> grid = HeatMap(**labels, x=[1, 2], y=["a", "b"], values=[[1, 2], [3, None]])
    >>> text = draw_map(grid)
    >>> text.startswith("<svg"), ">a</text>" in text, ">b</text>" in text
    (True, True, True)
    """
    with matplotlib.style.context(["default", STYLE]):
        return written(_plotted(shown, sheet), title=shown.title, name=name or digest(shown))


def _plotted(shown: HeatMap, sheet: Sheet) -> Canvas:
    names = _names(shown)
    height = sheet.height + LEGEND_LINE * bool(shown.marks)
    if names:
        height = max(height / 2, 1.3 + ROW * min(len(names), MOST_NAMES))
    canvas = Canvas(figsize=(sheet.width, height), layout="constrained")
    axes = titled(canvas, shown.title, shown.x_label, shown.y_label, sheet.letters)
    axes.grid(visible=False)
    axes.set_facecolor(NOTHING)
    values = np.array([[np.nan if v is None else v for v in row] for row in shown.values], dtype=float)
    values = values.reshape(len(shown.y), len(shown.x))
    if np.isfinite(values).any():
        _colours(canvas, axes, shown, values, named=bool(names))
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#6b6b6b")
    axes.xaxis.set_major_locator(MaxNLocator(sheet.ticks, integer=all(isinstance(x, int) for x in shown.x)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    if names:
        every = -(-len(names) // MOST_NAMES)
        axes.set_yticks(range(0, len(names), every), [textwrap.shorten(n, 60) for n in names[::every]])
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    return canvas


def _names(shown: HeatMap) -> list[str]:
    return [str(row) for row in shown.y] if any(isinstance(row, str) for row in shown.y) else []


def _colours(canvas: Canvas, axes: Axes, shown: HeatMap, values: np.ndarray[Any, Any], *, named: bool) -> None:
    rows = range(len(shown.y)) if named else [float(row) for row in shown.y]
    low, high = shown.limits or (np.nanmin(values), np.nanmax(values))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=COLORS,
        vmin=low,
        vmax=high,
        origin="upper" if named else "lower",
        extent=(*_edges(shown.x), *(reversed(_edges(rows)) if named else _edges(rows))),
        interpolation="none",
        aspect="auto",
    )
    if shown.contours and np.isfinite(values).all() and min(values.shape) > 1 and values.min() < values.max():
        axes.contour(shown.x, rows, values, levels=LEVELS, colors="white", linewidths=0.7)
    for number, (what, place) in enumerate(shown.marks.items()):
        axes.plot([place[0]], [place[1]], ls="", marker="ox+"[number % 3], mec="white", mfc="#d55e00", ms=8, label=what)
    if shown.marks:
        canvas.legend(loc="outside lower left", ncols=2)
    bar = canvas.colorbar(image, ax=axes, pad=0.02, label=shown.value_label)
    bar.formatter = FuncFormatter(lambda value, _: tick(value))
    bar.update_ticks()


def _edges(centres: Sequence[float] | range) -> tuple[float, float]:
    """The beginning of the first cell and the end of the last one."""
    half = (centres[-1] - centres[0]) / (len(centres) - 1) / 2 if len(centres) > 1 else 0.5
    return centres[0] - half, centres[-1] + half
