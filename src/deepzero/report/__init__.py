"""Runs and results as pages that a person would rather look at than read JSON lines."""

from deepzero.report.console import markdown, rich_table
from deepzero.report.html import page
from deepzero.report.records import Document, Figure, Picture, Series, Table
from deepzero.report.runs import documents
from deepzero.report.svg import draw

__all__ = ["Document", "Figure", "Picture", "Series", "Table", "documents", "draw", "markdown", "page", "rich_table"]
