"""Runs and results as pages that a person would rather look at than read JSON lines."""

from deepzero.report.console import markdown, rich_table
from deepzero.report.figures import Document, Figure, HeatMap, Picture, Series, Span, Table
from deepzero.report.html import page
from deepzero.report.live_page import Watch
from deepzero.report.maps import draw_map
from deepzero.report.run_pages import documents
from deepzero.report.svg import draw

__all__ = [
    "Document",
    "Figure",
    "HeatMap",
    "Picture",
    "Series",
    "Span",
    "Table",
    "Watch",
    "documents",
    "draw",
    "draw_map",
    "markdown",
    "page",
    "rich_table",
]
