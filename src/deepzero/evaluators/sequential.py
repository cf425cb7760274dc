"""The oracle: one full query after another, in a loop that anyone can check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deepzero.evaluators.base import DivisibleEvaluator, Job, Preparation, require_finite_base, timed_answer
from deepzero.objective import Objective, first_query, parameters_of
from deepzero.probes import Perturbations


class SequentialEvaluator(DivisibleEvaluator):
    """Answers every query by a full evaluation of the objective. Works for networks and any black box.

    Every query of a step sees the random numbers (dropout masks) that the base query drew.
    """

    def prepare(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Preparation:
        """The base query; every other query is a job."""
        parameters = parameters_of(objective)
        steps = perturbations.taken(parameters, offsets)
        base, query = first_query(objective, parameters, batch, seed)
        require_finite_base(base.loss)

        def difference(job: Job) -> Tensor:
            moved = perturbations.displace(parameters, job.start, offsets[job.row])
            return (query(moved).double() - base.loss.double()).reshape(1)

        jobs = [Job(row, k, k + 1) for row in range(len(offsets)) for k in range(len(perturbations))]
        return Preparation(
            base.loss.detach().double(),
            base.buffers,
            jobs,
            lambda some: [timed_answer(difference, job) for job in some],
            steps=steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the oracle keeps no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""
