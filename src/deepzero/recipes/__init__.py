"""Named configurations: plain functions that return a frozen record."""

from deepzero.recipes.catalogue import Catalogue, Recipe, catalogue_of
from deepzero.recipes.classification_recipes import RECIPES, find
from deepzero.recipes.configurations import SETTINGS, config_file, customize, data_config, own_config, with_data
from deepzero.recipes.run_starts import Start, named, resumed, start_of_team, started

__all__ = [
    "RECIPES",
    "SETTINGS",
    "Catalogue",
    "Recipe",
    "Start",
    "catalogue_of",
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
