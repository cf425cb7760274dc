"""All experiments by name."""

from __future__ import annotations

import difflib

from deepzero.errors import InvalidInputError
from deepzero.experiments import (
    batch_sizes,
    corrections,
    defenses,
    estimators,
    pruning,
    reuse,
    sample_sizes,
    schedules,
    sparsities,
    stopwatch,
    widths,
    without_backpropagation,
    workers,
)
from deepzero.experiments.experiment import Experiment

_ALL = (
    without_backpropagation.EXPERIMENT,
    estimators.EXPERIMENT,
    stopwatch.EXPERIMENT,
    reuse.EXPERIMENT,
    sparsities.EXPERIMENT,
    sample_sizes.EXPERIMENT,
    widths.EXPERIMENT,
    pruning.TABLE_A2,
    pruning.TABLE_A3,
    pruning.FIGURE_A3,
    batch_sizes.EXPERIMENT,
    workers.EXPERIMENT,
    schedules.EXPERIMENT,
    defenses.EXPERIMENT,
    corrections.EXPERIMENT,
)
"""To add an experiment: write it in a file of its own, and name it here."""

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""The paper's tables and figures, and our own comparisons, by name."""


def names() -> list[str]:
    """What :func:`find` takes."""
    return [name for experiment in _ALL for name in (experiment.name, *experiment.also)]


def find(name: str) -> Experiment:
    """The experiment called ``name``; several tables and figures may come from one.

    Raises:
        InvalidInputError: there is none; the message names the nearest.
    """
    for experiment in _ALL:
        if name in (experiment.name, *experiment.also):
            return experiment
    near = difflib.get_close_matches(name, names(), n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise InvalidInputError(f"unknown experiment {name!r}{guess}; there are: {', '.join(names())}")
