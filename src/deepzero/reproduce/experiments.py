"""All experiments by name."""

from __future__ import annotations

from deepzero.errors import InvalidInputError
from deepzero.reproduce.experiment import Experiment
from deepzero.reproduce.paper import fig1d as without_backpropagation
from deepzero.reproduce.paper import fig2 as estimators
from deepzero.reproduce.paper import fig3 as reuse
from deepzero.reproduce.paper import fig4 as sparsities
from deepzero.reproduce.paper import fig5 as sample_sizes
from deepzero.reproduce.paper import fig6 as corrections
from deepzero.reproduce.paper import fig_a5 as batch_sizes
from deepzero.reproduce.paper import fig_a6 as workers
from deepzero.reproduce.paper import schedule_study as schedules
from deepzero.reproduce.paper import table1 as widths
from deepzero.reproduce.paper import table2 as defenses
from deepzero.reproduce.paper import table_a1 as stopwatch
from deepzero.reproduce.paper import tables_a2_a3 as pruning
from deepzero.text import did_you_mean

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
    raise InvalidInputError(
        f"unknown experiment {name!r}{did_you_mean(name, names())}; there are: {', '.join(names())}"
    )
