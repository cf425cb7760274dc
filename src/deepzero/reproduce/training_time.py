"""How long a training run will take, before it is started."""

from __future__ import annotations

import copy

from torch import Tensor

from deepzero import data
from deepzero.doctor.forecast import forecast
from deepzero.estimator import Estimator
from deepzero.objective import parameters_of
from deepzero.stopwatch import Stopwatch, mean_seconds, median_seconds
from deepzero.tasks.classification import ClassificationConfig
from deepzero.tasks.classification.classifier_setup import set_up
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
    watch = Stopwatch()
    setup = set_up(config, splits.train, device(place))
    choosing = watch.seconds()
    source, batch = setup.source, setup.batches.batch(0, 0)
    if isinstance(source, Estimator):
        step = _estimate_seconds(source, batch)
    else:
        trial = copy.copy(source)
        trial.backward(*batch)  # the first call allocates and compiles
        step = mean_seconds(lambda: trial.backward(*batch), seconds=WINDOW)
    return choosing + config.training.epochs * len(setup.batches) * step


def _estimate_seconds(zo: Estimator, batch: tuple[Tensor, Tensor]) -> float:
    perturbations = zo.directions(*batch)
    query = median_seconds(lambda: zo.objective.evaluate(parameters_of(zo.objective), batch, seed=0), repeats=1)
    return forecast(zo, batch, perturbations, query_seconds=query)[0].seconds_per_step
