"""Formulas as MathML, which browsers draw by themselves: no script, no font and no server of anybody else's.

LaTeX is translated by math-core when the pages are built; what it does not know is an error of the build.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

LATEX = LatexToMathML(fancy_error=False)


def mathml(latex: str, *, block: bool) -> str:
    """A formula as a ``<math>`` element; ``\\tag`` goes with the environment that LaTeX wants around it."""
    if block and r"\tag" in latex:
        latex = rf"\begin{{equation}}{latex}\end{{equation}}"
    try:
        return LATEX.convert_with_local_state(latex, displaystyle=block)
    except LatexError as error:
        raise ExtensionError(f"the formula {latex!r} cannot be written as MathML: {error}") from error


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula of its own; wide ones scroll by themselves and not with the page."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(node.astext(), block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
