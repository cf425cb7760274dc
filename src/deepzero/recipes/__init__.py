"""Named configurations: plain functions that return a frozen record."""

from deepzero.recipes.catalogue import RECIPES, Recipe, find
from deepzero.recipes.customize import SETTINGS, customize
from deepzero.recipes.own_recipes import config_file, data_config, own_config, with_data
from deepzero.recipes.run_starts import Start, named, resumed, start_of_team, started

__all__ = [
    "RECIPES",
    "SETTINGS",
    "Recipe",
    "Start",
    "config_file",
    "customize",
    "data_config",
    "find",
    "named",
    "own_config",
    "resumed",
    "start_of_team",
    "started",
    "with_data",
]
