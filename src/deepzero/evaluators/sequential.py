"""The oracle: one full query after another, in a loop that anyone can check."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from deepzero.evaluators.base import (
    DivisibleEvaluator,
    Job,
    Preparation,
    StepQueries,
    in_turn,
    require_finite_base,
)
from deepzero.objective import first_query


class SequentialEvaluator(DivisibleEvaluator):
    """Answers every query by a full evaluation of the objective. Works for networks and any black box.

    Every query of a step sees the random numbers (dropout masks) that the base query drew.
    """

    def prepare(self, queries: StepQueries) -> Preparation:
        """The base query; every other query is a job."""
        parameters = queries.parameters()
        steps = queries.rounded_steps()
        base, query = first_query(queries.objective, parameters, queries.batch, queries.seed)
        require_finite_base(base.loss, (parameters, queries.batch))

        def difference(job: Job) -> Tensor:
            return (query(queries.moved(parameters, job.row, job.start)).double() - base.loss.double()).reshape(1)

        rows, directions = queries.shape
        jobs = [Job(row, k, k + 1) for row in range(rows) for k in range(directions)]
        return Preparation(
            base.loss.detach().double(),
            base.buffers,
            jobs,
            partial(in_turn, difference),
            steps=steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the oracle keeps no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""
