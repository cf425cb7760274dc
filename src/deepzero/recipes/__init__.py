"""Named configurations: plain functions that return a frozen record."""

from deepzero.recipes.catalogue import RECIPES, Recipe, find
from deepzero.recipes.customize import SETTINGS, customize
from deepzero.recipes.runs import Start, resumed, start_of_team, started

__all__ = ["RECIPES", "SETTINGS", "Recipe", "Start", "customize", "find", "resumed", "start_of_team", "started"]
