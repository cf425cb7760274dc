"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html`` in an environment with ``.[docs]``."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "deepzero"
author = "The deepzero developers"
project_copyright = "The deepzero developers"
version = release = installed_version("deepzero")

extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "summary",
]
exclude_patterns = ["_build", "**/GALLERY_HEADER.rst", "gallery/**/*.ipynb"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Every tutorial and example is run by the build; one that raises fails it.
sphinx_gallery_conf = {
    "examples_dirs": ["tutorials", "../examples"],
    "gallery_dirs": ["gallery/tutorials", "gallery/examples"],
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,  # its page takes scripts from a CDN
    "min_reported_time": 1,
    "plot_gallery": True,
}

html_theme = "furo"
html_title = "deepzero"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
html_math_renderer = "mathml"


def escape_shapes(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Types of attributes name shapes such as ``*lead``, where the asterisk begins no emphasis."""
    lines[:] = [line.replace("*", r"\*") if line.startswith(":vartype ") else line for line in lines]


def setup(app: Sphinx) -> None:
    """Escape what napoleon has written of types."""
    app.connect("autodoc-process-docstring", escape_shapes, priority=900)
