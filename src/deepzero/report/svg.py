"""Figures as SVG: small, reproducible, and safe to place many in one page."""

from __future__ import annotations

import hashlib
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deepzero.report.figures import Figure, HeatMap, Series
from deepzero.report.svg_text import cleaned
from deepzero.report.ticks import LogTicks, tick

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito (2008), told apart with any colour vision; their yellow is too pale for lines on white."""

GREYS = ("#6b6b6b", "#8f8f8f", "#474747")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("--", ":", "-.")
AGAIN = "--"
"""Of a curve that runs where another one does: what lies below shows through its gaps, and through its empty marks."""

SPAN = "#e6dfc8"
MANY_POINTS = 30
LEGEND_LINE = 0.2  # inches


@dataclass(frozen=True)
class Sheet:
    """What a figure is drawn on.

    Letters are 9 points high on all sheets, so they are the larger on a page, the narrower the sheet is.

    Attributes:
        width: inches.
        height: inches, without the legend.
        letters: that fit beside each other.
        ticks: at most, on the abscissa.
    """

    width: float
    height: float
    letters: int
    ticks: int


WIDE = Sheet(5.2, 3.3, 62, 9)
NARROW = Sheet(3.3, 2.5, 38, 5)
"""For pages: as wide as the screen of a phone, letters are still 12 pixels high."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "deepzero",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
}


def draw(figure: Figure, *, name: str | None = None, sheet: Sheet = WIDE) -> str:
    """The figure as the text of an SVG file.

    Colours are for any colour vision; published curves are grey and broken. A curve that runs where an earlier one does
    is broken, and has empty marks. A spread is drawn as error bars, or as a band where points are many. Points that an
    axis cannot show (not finite, or not above 0 on a logarithmic one) are left out. The same figure gives the same
    bytes under the same version of matplotlib.

    Args:
        figure: what to draw.
        name: begins all identifiers inside, so that they are unique in a page; by default it follows from the figure.
        sheet: how wide it is, and how high.

    >>> curve = Series(name="cge", x=[1, 2], y=[0.5, 0.7], spread=[0.1, 0.1])
    >>> text = draw(Figure(title="Digits", x_label="epoch", y_label="accuracy", series=[curve]))
    >>> text.startswith("<svg"), ">cge</text>" in text, text.count('class="series"')
    (True, True, 1)
    """
    with matplotlib.style.context(["default", STYLE]):
        return written(_plotted(figure, sheet), title=figure.title, name=name or digest(figure))


def written(canvas: Canvas, *, title: str, name: str) -> str:
    """A drawing as the text of an SVG file."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return cleaned(buffer.getvalue(), title=title, prefix=name)


def digest(shown: Figure | HeatMap) -> str:
    """A name that follows from what is shown."""
    return f"f{hashlib.sha256(json.dumps(asdict(shown), default=list).encode()).hexdigest()[:8]}"


def titled(canvas: Canvas, title: str, x_label: str, y_label: str, letters: int) -> Axes:
    """Axes with their labels, broken into lines that fit."""
    FigureCanvasSVG(canvas)
    axes = canvas.subplots()
    lines = textwrap.fill(title, letters)
    canvas.suptitle(lines, x=0.02, ha="left", fontsize=10)
    axes.set_xlabel(textwrap.fill(x_label, letters))
    axes.set_ylabel(textwrap.fill(y_label, letters // 2))
    return axes


def _plotted(figure: Figure, sheet: Sheet) -> Canvas:
    names = [*(series.name for series in figure.series), *(span.name for span in figure.spans)]
    columns = _legend_columns(names, sheet)
    labels = [textwrap.fill(name, sheet.letters - 5) for name in names]
    lines = _legend_lines(labels, columns)
    canvas = Canvas(figsize=(sheet.width, sheet.height + LEGEND_LINE * lines), layout="constrained")
    axes = titled(canvas, figure.title, figure.x_label, figure.y_label, sheet.letters)
    visible = [_visible(series, figure) for series in figure.series]
    _scale(axes, figure, visible, sheet)
    spans = [axes.axvspan(span.start, span.end, zorder=0, color=SPAN, linewidth=0) for span in figure.spans]
    handles: list[Artist] = [*starmap(partial(_curve, axes), zip(visible, _looks(visible), strict=True))]
    _widen(axes, figure, visible)
    if not any(len(series.x) for series in visible):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#6b6b6b")
    handles += [Patch(color=SPAN) for _ in spans]
    if handles:
        legend = canvas.legend(handles, [str(i) for i in range(len(handles))], loc="outside lower left", ncols=columns)
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_text(label)
    return canvas


def _legend_columns(names: Sequence[str], sheet: Sheet) -> int:
    longest = max(map(len, names), default=0)
    return max(1, min(len(names), 4, sheet.letters // (longest + 6)))


def _legend_lines(labels: Sequence[str], columns: int) -> int:
    """Lines of text, of which a label may have several."""
    rows = math.ceil(len(labels) / max(columns, 1))
    heights = [label.count("\n") + 1 for label in labels]
    return max((sum(heights[start : start + rows]) for start in range(0, len(labels), max(rows, 1))), default=0)


def _visible(series: Series, figure: Figure) -> Series:
    """The points that the axes can show."""
    lowest_x, lowest_y = (0.0 if log else -math.inf for log in (figure.x_log, figure.y_log))
    spread = series.spread if series.spread is not None else [0.0] * len(series.x)
    points = [
        (x, y, s if math.isfinite(s) else 0.0)
        for x, y, s in zip(series.x, series.y, spread, strict=True)
        if lowest_x < x < math.inf and lowest_y < y < math.inf
    ]
    x, y, s = ([point[i] for point in points] for i in range(3))
    return Series(name=series.name, x=x, y=y, spread=None if series.spread is None else s, reference=series.reference)


def _scale(axes: Axes, figure: Figure, visible: Sequence[Series], sheet: Sheet) -> None:
    drawn = any(len(series.x) for series in visible)
    for axis, log in ((axes.xaxis, figure.x_log), (axes.yaxis, figure.y_log)):
        if log and drawn:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_formatter(LogTicks(crowded=axis is axes.xaxis and sheet is NARROW))
        elif axis is axes.xaxis:
            axis.set_major_locator(MaxNLocator(sheet.ticks, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _widen(axes: Axes, figure: Figure, visible: Sequence[Series]) -> None:
    """Limits from 0, where they are asked for; and around a single abscissa on a logarithmic axis."""
    if figure.x_from_zero and not figure.x_log:
        axes.set_xlim(left=0)
    places = {x for series in visible for x in series.x}  # where error bars would spoil the limits
    if figure.x_log and len(places) == 1:
        [x] = places
        axes.set_xlim(x / 2, 2 * x)


def _looks(series: Sequence[Series]) -> list[dict[str, str]]:
    """Colour, line and marks of each curve; ours and published ones are counted apart."""
    looks: list[dict[str, str]] = []
    counts = {True: 0, False: 0}
    for place, one in enumerate(series):
        number = counts[one.reference]
        counts[one.reference] += 1
        colors = GREYS if one.reference else COLORS
        color = colors[number % len(colors)]
        again = not one.reference and any(_runs_where(one, earlier) for earlier in series[:place])
        look = {"color": color, "marker": MARKERS[(number // len(colors) + number) % len(MARKERS)]}
        look["linestyle"] = DASHES[number % len(DASHES)] if one.reference else AGAIN if again else "-"
        looks.append({**look, "markerfacecolor": "none" if again else color})
    return looks


def _runs_where(one: Series, other: Series) -> bool:
    """Whether half of the points of the shorter curve are points of the longer one."""
    mine, others = set(zip(one.x, one.y, strict=True)), set(zip(other.x, other.y, strict=True))
    return bool(mine) and 2 * len(mine & others) >= min(len(mine), len(others)) > 0


def _curve(axes: Axes, series: Series, look: dict[str, str]) -> Artist:
    many = len(series.x) > MANY_POINTS
    if series.spread is not None and many:
        low, high = ([y + sign * s for y, s in zip(series.y, series.spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(series.x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    elif series.spread is not None and len(series.x):
        axes.errorbar(series.x, series.y, yerr=series.spread, fmt="none", ecolor=look["color"], capsize=2.5)
    [line] = axes.plot(series.x, series.y)
    line.set(**look, gid="series", zorder=3 if series.reference else 4)
    if many:
        line.set_marker("")
    if len(series.x) == 1 or look["markerfacecolor"] == "none":
        line.set_markersize(7)
    return line
