"""Coordinate directions by full forwards of several networks at once, the unperturbed one among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.evaluators import DivisibleEvaluator
from deepzero.evaluators.base import Job, Preparation, require_finite_base, timed_answer
from deepzero.evaluators.batched import jobs_of, stacked_losses
from deepzero.objective import NetworkObjective, Objective
from deepzero.probes import CoordinatePerturbations, Perturbations


class StackedEvaluator(DivisibleEvaluator):
    """Evaluates ``chunk`` perturbed networks and the unperturbed one in one vectorized forward.

    A loss difference is between members of one forward, so that a coordinate on which the loss does not depend has the
    difference 0 and not the rounding between two kinds of forward: a direct search must tell the two apart.

    Args:
        chunk: perturbed networks a forward; memory grows with it.
    """

    def __init__(self, *, chunk: int = 4) -> None:
        self.chunk = validation.count("chunk", chunk)

    def prepare(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Preparation:
        """The base query; every chunk of coordinates is a job."""
        if not isinstance(objective, NetworkObjective) or not isinstance(perturbations, CoordinatePerturbations):
            raise InvalidInputError("StackedEvaluator evaluates coordinates on an nn.Module")
        parameters = objective.parameters()
        base = objective.evaluate(parameters, batch, seed=seed)
        require_finite_base(base.loss)

        def differences(job: Job) -> Float64[Tensor, " job"]:
            stacked = {name: p.expand(1 + len(job), *p.shape).contiguous() for name, p in parameters.items()}
            for member, k in enumerate(range(job.start, job.stop), start=1):
                name, index = perturbations.locate(k)
                stacked[name][member].view(-1)[index] += offsets[job.row]
            losses = stacked_losses(objective, stacked, batch, seed)
            return losses[1:] - losses[0]

        jobs = jobs_of(perturbations, len(offsets), self.chunk)
        return Preparation(base.loss, base.buffers, jobs, lambda some: [timed_answer(differences, job) for job in some])

    def state_dict(self) -> dict[str, Any]:
        """The chunk, on which the last bits depend."""
        return {"chunk": self.chunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk."""
        self.chunk = state["chunk"]
