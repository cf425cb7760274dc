"""``.. summary:: MODULE [NAME ...]``: a table of a module's public names, each with its first sentence and a link.

The names are those of ``__all__``, or what the module itself defines if it has none, so that no table can miss one;
where a page describes some of them only, they are named.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.autosummary import Autosummary
from sphinx.pycode import ModuleAnalyzer


def public_names(module: ModuleType) -> list[str]:
    """Names that the module offers."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def place(module: ModuleType, name: str) -> str:
    """Full name under which the reference has an entry: names of the top-level package are described in its parts."""
    if module.__name__ != "deepzero":
        return f"{module.__name__}.{name}"
    value = getattr(module, name)
    home = "deepzero" if inspect.ismodule(value) else ".".join(value.__module__.split(".")[:2])
    return f"{home}.{name}"


@cache
def described_values(name: str) -> dict[str, str]:
    """What the strings below the values of a module or package say; ``__doc__`` of a value is that of its type."""
    module = importlib.import_module(name)
    parts = pkgutil.walk_packages(getattr(module, "__path__", []), prefix=f"{name}.")
    found = {}
    for part in (name, *(part.name for part in parts)):
        said = ModuleAnalyzer.for_module(part).find_attr_docs()
        found |= {value: " ".join(lines) for (owner, value), lines in said.items() if not owner}
    return found


class Summary(Autosummary):
    """The directive."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True
    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The table of an autosummary over the names of the module."""
        module = importlib.import_module(self.arguments[0])
        names = self.arguments[1].split() if len(self.arguments) > 1 else public_names(module)
        self.content = StringList([f"~{place(module, name)}" for name in names])
        self.options["nosignatures"] = None
        self.env.ref_context.pop(
            "py:module", None
        )  # an entry before this table may have named one; ours are full names
        return super().run()

    def get_items(self, names: list[str]) -> list[tuple[str, str | None, str, str]]:
        """As they are, with the words of the module for its values."""
        items = []
        for name, signature, said, real_name in super().get_items(names):
            home, _, attribute = real_name.rpartition(".")
            value = getattr(importlib.import_module(home), attribute)
            if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
                items.append((name, signature, described_values(home).get(attribute, "").partition(". ")[0], real_name))
            else:
                items.append((name, signature, said, real_name))
        return items


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("summary", Summary)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
