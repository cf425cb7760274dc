from .figures import Document, Figure, HeatMap, Picture, Series, Span, Table
from .html import page
from .live_page import Watch
from .maps import draw_map
from .run_pages import documents
from .svg import draw
from .value_text import markdown, rich_table

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
