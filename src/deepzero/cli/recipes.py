"""``deepzero recipes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from deepzero.cli.command import Output
from deepzero.cli.options import Json, Quiet

if TYPE_CHECKING:
    from deepzero.recipes import Recipe


@dataclass(frozen=True)
class Recipes:
    """List the recipes, with a description, the data and the cost of each."""

    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Print a table for each command that takes recipes."""
        from deepzero.recipes import catalogue_of  # noqa: PLC0415 - with PyTorch
        from deepzero.recipes.catalogue import COMMANDS  # noqa: PLC0415

        commands = {command: catalogue_of(command).values() for command in COMMANDS}
        tables = []
        for command, recipes in commands.items():
            table = Table(command, "what it is", "data", "cost", title=f"deepzero {command} RECIPE")
            for recipe in recipes:
                table.add_row(recipe.name, recipe.summary, _data(recipe.config()), recipe.cost)
            tables.append(table)
        values = {command: [_values(recipe) for recipe in recipes] for command, recipes in commands.items()}
        output.result(Group(*tables), **values)
        return 0


def _values(recipe: Recipe[Any]) -> dict[str, str]:
    return {"name": recipe.name, "summary": recipe.summary, "data": _data(recipe.config()), "cost": recipe.cost}


def _data(config: Any) -> str:
    """Name of a data set; simulations are made."""
    return config.data.name if hasattr(config, "data") else "simulated"
