"""How long a training run will take, before it is started."""

from __future__ import annotations

import copy

from torch import Tensor

from deepzero import data
from deepzero.doctor.forecast import forecast
from deepzero.estimator import Estimator
from deepzero.objective import parameters_of
from deepzero.stopwatch import Stopwatch, mean_seconds, median_seconds
from deepzero.tasks.classification.classification_config import ClassificationConfig
from deepzero.tasks.classification.classification_parts import make_model, training_batches
from deepzero.tasks.classification.coordinate_selection import select
from deepzero.tasks.classification.gradient_choice import gradient_source
from deepzero.validation import device

WINDOW = 2.0
"""Seconds of timing steps."""


def training_seconds(config: ClassificationConfig, splits: data.Splits, place: str = "cpu") -> float:
    """Seconds of the steps of a run, the choice of its coordinates included; validation is left out.

    An estimate from function values that takes long is added up from the measured cost of a query of every parameter;
    everything else is timed for some steps.

    Args:
        config: of the run.
        splits: its images.
        place: ``cpu``, ``cuda`` or ``cuda:1``.
    """
    where = device(place)
    watch = Stopwatch()
    model = make_model(config, splits.train).to(where)
    batches = training_batches(config, splits.train, where)
    selection = select(config, model, splits.train, where)
    choosing = watch.seconds()
    source = gradient_source(config, model, selection)
    batch = batches.batch(0, 0)
    if isinstance(source, Estimator):
        step = _estimate_seconds(source, batch)
    else:
        trial = copy.copy(source)
        trial.backward(*batch)  # the first call allocates and compiles
        step = mean_seconds(lambda: trial.backward(*batch), seconds=WINDOW)
    return choosing + config.training.epochs * len(batches) * step


def _estimate_seconds(zo: Estimator, batch: tuple[Tensor, Tensor]) -> float:
    perturbations = zo.directions(*batch)
    query = median_seconds(lambda: zo.objective.evaluate(parameters_of(zo.objective), batch, seed=0), repeats=1)
    return forecast(zo, batch, perturbations, query_seconds=query)[0].seconds_per_step
