"""``deepzero recipes``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from deepzero.recipes import RECIPES, Recipe
from deepzero.recipes.corrections import CORRECTIONS
from deepzero.recipes.defenses import DEFENSES


@dataclass(frozen=True)
class Recipes:
    """List the recipes: what each is, the data it needs, what it costs."""

    def run(self, console: Console) -> int:
        """Print a table for each command that takes recipes."""
        tables: dict[str, Iterable[Recipe[Any]]] = {
            "train": RECIPES.values(),
            "defend": DEFENSES.values(),
            "correct": CORRECTIONS.values(),
        }
        for command, recipes in tables.items():
            table = Table(command, "what it is", "data", "cost", title=f"deepzero {command} RECIPE")
            for recipe in recipes:
                table.add_row(recipe.name, recipe.summary, _data(recipe.config()), recipe.cost)
            console.print(table)
        return 0


def _data(config: Any) -> str:
    """Name of a data set; simulations are made."""
    return config.data.name if hasattr(config, "data") else "simulated"
