"""``deepzero recipes``."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from deepzero.recipes import RECIPES


@dataclass(frozen=True)
class Recipes:
    """List the recipes: what each is, the data it needs, what it costs."""

    def run(self, console: Console) -> int:
        """Print the table."""
        table = Table("recipe", "what it is", "data", "cost")
        for recipe in RECIPES.values():
            table.add_row(recipe.name, recipe.summary, recipe.config().data.name, recipe.cost)
        console.print(table)
        return 0
