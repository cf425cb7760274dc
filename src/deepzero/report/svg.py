"""Figures as SVG: small, reproducible, and safe to place many in one page."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap

from deepzero.extras import required_for
from deepzero.report.figures import Figure, HeatMap, Series

with required_for("a figure"):
    import matplotlib.style
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

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
    """The paper that a figure is drawn on.

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

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

NAMESPACE = "http://www.w3.org/2000/svg"
FONTS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Verdana, Arial, sans-serif"

_REFERENCE = re.compile(r"#([\w-]+)")
_FONT = re.compile(r"font: [^;]*?([\d.]+px)[^;]*")
_FAMILY = re.compile(r"font-family: [^;]*;? ?")


def draw(figure: Figure, *, name: str | None = None, sheet: Sheet = WIDE) -> str:
    """The figure as the text of an SVG file.

    Colours are for any colour vision; published curves are grey and broken. A curve that runs where an earlier one does
    is broken, and has empty marks. A spread is drawn as error bars, or as a band where points are many. Points that an
    axis cannot show (not finite, or not above 0 on a logarithmic one) are left out. The same figure gives the same
    bytes under the same version of matplotlib.

    Args:
        figure: the figure to draw.
        name: begins all identifiers inside, so that they are unique in a page; by default it follows from the figure.
        sheet: its width and height.

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
    """True if half of the points of the shorter curve are points of the longer one."""
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


def tick(value: float) -> str:
    """A number as a tick is labelled.

    >>> [tick(v) for v in (0, 0.1 + 0.2, -2500, 1e6, 1e-3, 1e-5, 2e-7, 1e15)]
    ['0', '0.3', '-2.5k', '1M', '0.001', '10⁻⁵', '2×10⁻⁷', '10¹⁵']
    """
    size = abs(value)
    if size == 0:
        return "0"
    if not 0.9999e-3 <= size < 1e15:
        return _power(value)
    factor, unit = next(((f, u) for f, u in UNITS if size >= f * 0.99999), (1.0, ""))
    return f"{value / factor:.5g}{unit}"


class LogTicks(LogFormatter):
    """Labels between the powers of ten, where the axis is so short that it needs them.

    Args:
        crowded: there is room for a few of them only.
    """

    def __init__(self, *, crowded: bool = False) -> None:
        super().__init__()
        self._crowded = crowded

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label at ``x``, empty where there is to be none."""
        shown = bool(super().__call__(x, pos)) and not (self._crowded and self._is_between(x))
        return tick(x) if shown else ""

    def _is_between(self, x: float) -> bool:
        """True if its neighbours are to have a label and it has not."""
        assert self.axis is not None
        low, high = sorted(self.axis.get_view_interval())
        decades = math.log10(high / low)
        digit = round(x / 10 ** math.floor(math.log10(x) + 1e-9))
        return decades > 0.3 and digit not in ((2, 3, 5) if decades < 0.7 else (2, 5))


def _power(value: float) -> str:
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    digits = f"{value / 10**exponent:.4g}"
    power = f"10{str(exponent).translate(SUPERSCRIPTS)}"
    return power if digits == "1" else f"-{power}" if digits == "-1" else f"{digits}\u00d7{power}"


def cleaned(text: str, *, title: str, prefix: str) -> str:
    """The SVG without declarations, style sheets and unused identifiers, and with a title for screen readers.

    Args:
        text: an SVG file of matplotlib.
        title: of the picture.
        prefix: put before each identifier, so that those of several pictures differ.
    """
    root = ET.fromstring(text)
    for element in root.iter():
        _without_namespaces(element)
    _drop(root, "metadata")
    for definitions in root.findall("defs"):
        _drop(definitions, "style")
    used = {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in root.iter():
        _rename(element, used, prefix)
    head = ET.Element("title")
    head.text = title
    root.insert(0, head)
    root.attrib = {"xmlns": NAMESPACE, "role": "img", "stroke-linejoin": "round", "font-family": FONTS, **root.attrib}
    root.attrib.pop("version", None)
    return ET.tostring(root, encoding="unicode") + "\n"


def _drop(parent: ET.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)


def _without_namespaces(element: ET.Element) -> None:
    """``svg:path`` -> ``path`` and ``xlink:href`` -> ``href``, as HTML and SVG 2 have them."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _rename(element: ET.Element, used: set[str], prefix: str) -> None:
    attributes = element.attrib
    name = attributes.pop("id", None)
    if name == "series":
        attributes["class"] = "series"
    if name in used:
        attributes["id"] = f"{prefix}-{name}"
    for key in ("href", "clip-path"):
        if key in attributes:
            attributes[key] = attributes[key].replace("#", f"#{prefix}-")
    if "style" in attributes:
        attributes["style"] = _FAMILY.sub("", _FONT.sub(r"font-size: \1", attributes["style"]))
