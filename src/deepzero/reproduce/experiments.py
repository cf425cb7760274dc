"""All experiments by name."""

from __future__ import annotations

from typing import Any

from deepzero.errors import InvalidInputError
from deepzero.reproduce.experiment import Experiment
from deepzero.reproduce.paper import (
    fig1d,
    fig2,
    fig3,
    fig4,
    fig5,
    fig6,
    fig_a3,
    fig_a5,
    fig_a6,
    schedule_study,
    table1,
    table2,
    table_a1,
    tables_a2_a3,
)
from deepzero.text import did_you_mean

_ALL: tuple[Experiment[Any], ...] = (
    fig1d.EXPERIMENT,
    fig2.EXPERIMENT,
    table_a1.EXPERIMENT,
    fig3.EXPERIMENT,
    fig4.EXPERIMENT,
    fig5.EXPERIMENT,
    table1.EXPERIMENT,
    tables_a2_a3.TABLE_A2,
    tables_a2_a3.TABLE_A3,
    fig_a3.EXPERIMENT,
    fig_a5.EXPERIMENT,
    fig_a6.EXPERIMENT,
    schedule_study.EXPERIMENT,
    table2.EXPERIMENT,
    fig6.EXPERIMENT,
)
"""To add an experiment: write it in a file of its own in ``paper/``, and name it here."""

EXPERIMENTS: dict[str, Experiment[Any]] = {experiment.name: experiment for experiment in _ALL}
"""The paper's tables and figures, and our own comparisons, by name."""


def names() -> list[str]:
    """The names that :func:`find` takes."""
    return [name for experiment in _ALL for name in (experiment.name, *experiment.also)]


def find(name: str) -> Experiment[Any]:
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
