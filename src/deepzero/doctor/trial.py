"""Does a step of the learning rate along the estimate lower the loss?"""

from __future__ import annotations

import math
from typing import Any

from deepzero import validation
from deepzero.doctor.records import Trial
from deepzero.estimator import Estimate
from deepzero.objective import Objective, parameters_of


def try_step(
    objective: Objective, batch: tuple[Any, ...], estimate: Estimate, learning_rate: float, *, seed: int
) -> Trial:
    """One plain gradient step on the same batch, on a copy of the parameters."""
    validation.positive("learning_rate", learning_rate, hint="0.1")
    moved = {name: p - learning_rate * estimate.gradients[name] for name, p in parameters_of(objective).items()}
    after = float(objective.evaluate(moved, batch, seed=seed).loss)
    return Trial(learning_rate, float(estimate.loss), after if math.isfinite(after) else None)
