"""Runs and results as pages that a person would rather look at than read JSON lines."""

from deepzero.report.records import Document, Figure, Series, Table

__all__ = ["Document", "Figure", "Series", "Table"]
