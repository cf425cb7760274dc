"""Figures as SVG: small, reproducible, and safe to place many in one page."""

from __future__ import annotations

import hashlib
import io
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from deepzero.report.records import Figure, Series
from deepzero.report.svg_text import cleaned
from deepzero.report.ticks import LogTicks, tick

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito (2008), told apart with any colour vision; their yellow is too pale for lines on white."""

GREYS = ("#6b6b6b", "#8f8f8f", "#474747")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("--", ":", "-.")
MANY_POINTS = 30
WIDTH, HEIGHT, LEGEND_LINE = 5.2, 3.3, 0.2  # inches
LETTERS = 62  # that fit beside each other

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


def draw(figure: Figure, *, name: str | None = None) -> str:
    """The figure as the text of an SVG file.

    Colours are for any colour vision; published curves are grey and broken. A spread is drawn as error bars, or as a
    band where points are many. Points that an axis cannot show (not finite, or not above 0 on a logarithmic one) are
    left out. The same figure gives the same bytes under the same version of matplotlib.

    Args:
        figure: what to draw.
        name: begins all identifiers inside, so that they are unique in a page; by default it follows from the figure.

    >>> curve = Series(name="cge", x=[1, 2], y=[0.5, 0.7], spread=[0.1, 0.1])
    >>> text = draw(Figure(title="Digits", x_label="epoch", y_label="accuracy", series=[curve]))
    >>> text.startswith("<svg"), ">cge</text>" in text, text.count('class="series"')
    (True, True, 1)
    """
    with matplotlib.style.context(["default", STYLE]):
        canvas = _plotted(figure)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return cleaned(buffer.getvalue(), title=figure.title, prefix=name or _digest(figure))


def _digest(figure: Figure) -> str:
    return f"f{hashlib.sha256(json.dumps(asdict(figure), default=list).encode()).hexdigest()[:8]}"


def _plotted(figure: Figure) -> Canvas:
    columns = _legend_columns(figure.series)
    lines = math.ceil(len(figure.series) / columns)
    canvas = Canvas(figsize=(WIDTH, HEIGHT + LEGEND_LINE * lines), layout="constrained")
    FigureCanvasSVG(canvas)
    axes = canvas.subplots()
    axes.set_title(textwrap.fill(figure.title, LETTERS), loc="left")
    axes.set_xlabel(textwrap.fill(figure.x_label, LETTERS))
    axes.set_ylabel(textwrap.fill(figure.y_label, LETTERS // 2))
    visible = [_visible(series, figure) for series in figure.series]
    _scale(axes, figure, visible)
    handles = [_curve(axes, series, look) for series, look in zip(visible, _looks(visible), strict=True)]
    _widen(axes, figure, visible)
    if not any(len(series.x) for series in visible):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#6b6b6b")
    if handles:
        legend = canvas.legend(handles, [str(i) for i in range(len(handles))], loc="outside lower left", ncols=columns)
        for text, series in zip(legend.get_texts(), figure.series, strict=True):
            text.set_text(textwrap.fill(series.name, LETTERS))
    return canvas


def _legend_columns(series: Sequence[Series]) -> int:
    longest = max((len(s.name) for s in series), default=0)
    return max(1, min(len(series), 4, LETTERS // (longest + 6)))


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


def _scale(axes: Axes, figure: Figure, visible: Sequence[Series]) -> None:
    drawn = any(len(series.x) for series in visible)
    for axis, log in ((axes.xaxis, figure.x_log), (axes.yaxis, figure.y_log)):
        if log and drawn:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_formatter(LogTicks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _widen(axes: Axes, figure: Figure, visible: Sequence[Series]) -> None:
    """Limits around a single abscissa on a logarithmic axis, which error bars there would spoil."""
    places = {x for series in visible for x in series.x}
    if figure.x_log and len(places) == 1:
        [x] = places
        axes.set_xlim(x / 2, 2 * x)


def _looks(series: Iterable[Series]) -> list[dict[str, str]]:
    """Colour, line and marker of each curve; ours and published ones are counted apart."""
    looks: list[dict[str, str]] = []
    counts = {True: 0, False: 0}
    for one in series:
        number = counts[one.reference]
        counts[one.reference] += 1
        colors = GREYS if one.reference else COLORS
        marker = MARKERS[(number // len(colors) + number) % len(MARKERS)]
        dash = DASHES[number % len(DASHES)] if one.reference else "-"
        looks.append({"color": colors[number % len(colors)], "marker": marker, "linestyle": dash})
    return looks


def _curve(axes: Axes, series: Series, look: dict[str, str]) -> Artist:
    many = len(series.x) > MANY_POINTS
    if series.spread is not None and many:
        low, high = ([y + sign * s for y, s in zip(series.y, series.spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(series.x, low, high, color=look["color"], alpha=0.2, linewidth=0)
    elif series.spread is not None and len(series.x):
        axes.errorbar(series.x, series.y, yerr=series.spread, fmt="none", ecolor=look["color"], capsize=2.5)
    [line] = axes.plot(series.x, series.y, color=look["color"], linestyle=look["linestyle"])
    line.set(gid="series", marker="" if many else look["marker"], zorder=3 if series.reference else 4)
    if len(series.x) == 1:
        line.set_markersize(7)
    return line
