"""Figures and tables as data; drawing them is the business of other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, get_type_hints

from deepzero.errors import InvalidInputError
from deepzero.validation import fits

FORMAT = "deepzero results 1"

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        x: abscissae.
        y: ordinates, as many.
        spread: half the height of an error bar at each point (a standard deviation over seeds); None for none.
        reference: it is a published curve and not a measurement of ours.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    reference: bool = False

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.spread if self.spread is not None else self.y):
            raise InvalidInputError(f"series {self.name!r} needs as many y and spread values as x values")


def curve(name: str, points: Sequence[tuple[float, float]]) -> Series:
    """A series through points.

    >>> curve("cge", [(1, 0.5), (2, 0.7)])
    Series(name='cge', x=[1, 2], y=[0.5, 0.7], spread=None, reference=False)
    """
    return Series(name=name, x=[x for x, _ in points], y=[y for _, y in points])


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of the abscissa that is marked, such as the start-up of a run.

    Attributes:
        name: in the legend.
        start: its beginning.
        end: its end.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves over common axes.

    Attributes:
        title: of the figure.
        x_label: name and unit of the abscissa.
        y_label: name and unit of the ordinate.
        series: the curves.
        x_log: logarithmic abscissa.
        y_log: logarithmic ordinate.
        x_from_zero: a linear abscissa begins at 0, whatever the curves do.
        spans: stretches of the abscissa that are marked.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    x_from_zero: bool = False
    spans: Sequence[Span] = ()


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Numbers over a grid, drawn as colours.

    Attributes:
        title: above it.
        x_label: name and unit of the abscissa.
        y_label: name and unit of the ordinate; what the rows are, where these have names.
        value_label: name and unit of what the colours stand for.
        x: centres of the columns, rising and evenly spaced.
        y: centres of the rows, rising and evenly spaced, the first at the bottom; or names, the first at the top.
        values: a row for each of ``y``, a number for each of ``x``; None where there is none.
        limits: values at the ends of the colours; None to take the least and the largest.
        contours: draw lines of equal value.
        marks: names of points, with their places.
        note: a remark for the reader.
    """

    title: str
    x_label: str
    y_label: str
    value_label: str
    x: Sequence[float]
    y: Sequence[float] | Sequence[str]
    values: Sequence[Sequence[float | None]]
    limits: Sequence[float] | None = None
    contours: bool = False
    marks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.y) or any(len(row) != len(self.x) for row in self.values):
            raise InvalidInputError(f"map {self.title!r} needs a row for each y and in it a value for each x")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts, ready to be shown.

    Attributes:
        title: of the table.
        columns: heads of the columns.
        rows: one text for each column.
        note: a remark for the reader, for example what "paper" stands for.
        bars: columns of percentages that a page shows as bars too.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    bars: Sequence[str] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.bars) - set(self.columns):
            raise InvalidInputError(f"table {self.title!r} has no columns {sorted(unknown)} to show as bars")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InvalidInputError(f"table {self.title!r} has {len(self.columns)} columns, a row has {len(row)}")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image.

    Attributes:
        title: above it.
        source: its address: that of a file, or the image itself as a ``data:`` address.
    """

    title: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """Results with everything a reader needs to judge them; the content of ``results.json``.

    Attributes:
        title: of the whole.
        caption: the settings of the run, and their reduction. An empty line parts paragraphs; a paragraph that begins
            with spaces is a command.
        headline: the few texts to see first, by name, such as the test accuracy.
        tables: tables.
        figures: figures.
        maps: numbers over a grid.
        pictures: images.
        facts: command, date, versions, hardware, configuration, ...: JSON-able values by name.
        cells: the single measurements, each with its labels and numbers.
    """

    title: str
    caption: str = ""
    headline: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    maps: Sequence[HeatMap] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cells: Sequence[Mapping[str, Any]] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values, from which :meth:`from_dict` makes the document again."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Document:
        """The document that :meth:`as_dict` described.

        Raises:
            InvalidInputError: the values are not of this format.
        """
        if values.get("format") != FORMAT:
            raise InvalidInputError(f"expected results of format {FORMAT!r}, got {values.get('format')!r}")
        content = {key: value for key, value in values.items() if key != "format"}
        try:
            content["tables"] = [_checked(Table(**table)) for table in content.get("tables", ())]
            content["pictures"] = [_checked(Picture(**picture)) for picture in content.get("pictures", ())]
            content["maps"] = [_checked(HeatMap(**drawn)) for drawn in content.get("maps", ())]
            content["figures"] = [_figure(figure) for figure in content.get("figures", ())]
            return _checked(cls(**content))
        except InvalidInputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInputError(f"these results do not follow the format {FORMAT!r}: {error}") from error


def _figure(values: Mapping[str, Any]) -> Figure:
    series = [_checked(Series(**series)) for series in values["series"]]
    spans = [_checked(Span(**span)) for span in values.get("spans", ())]
    return _checked(Figure(**{**values, "series": series, "spans": spans}))


def _checked(made: Part) -> Part:
    """A part of a document, whose fields are of the kinds that their annotations say."""
    for name, hint in get_type_hints(type(made)).items():
        if not fits(getattr(made, name), hint):
            raise TypeError(f"{name} of a {type(made).__name__} is {str(getattr(made, name))[:60]!r}")
    return made
