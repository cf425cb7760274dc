from .figures import Document, Figure, HeatMap, Picture, Series, Span, Table
from .html import page
from .live_page import Watch
from .maps import draw_map
from .run_pages import documents, page_of
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
    "page_of",
    "rich_table",
]
