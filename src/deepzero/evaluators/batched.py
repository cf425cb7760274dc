"""Random directions on a network, many at once: ``torch.func.vmap`` over stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import DivisibleEvaluator, Job, Preparation, require_finite_base, timed_answer
from deepzero.objective import NetworkObjective, Objective, Parameters, device_of, split_batch
from deepzero.probes import Perturbations, RandomPerturbations
from deepzero.randomness import seeded_scope


class BatchedEvaluator(DivisibleEvaluator):
    """Evaluates ``chunk`` random directions in one vectorized forward.

    Args:
        chunk: directions a forward; memory grows with it. The same chunk gives the same bits.
    """

    def __init__(self, *, chunk: int = 8) -> None:
        self.chunk = validation.count("chunk", chunk)

    def prepare(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Preparation:
        """The base query; every chunk of directions is a job."""
        if not isinstance(objective, NetworkObjective) or not isinstance(perturbations, RandomPerturbations):
            raise InvalidInputError(
                "BatchedEvaluator evaluates random directions (RGE) on an nn.Module; "
                "use evaluator=dz.SequentialEvaluator() here"
            )
        parameters = objective.parameters()
        base = objective.evaluate(parameters, batch, seed=seed)
        require_finite_base(base.loss)

        def differences(job: Job) -> Tensor:
            directions = perturbations.stack(job.start, job.stop)
            moved = {name: parameters[name] + offsets[job.row] * directions[name] for name in parameters}
            return stacked_losses(objective, moved, batch, seed) - base.loss

        jobs = jobs_of(len(perturbations), len(offsets), self.chunk)
        return Preparation(
            base.loss,
            base.buffers,
            jobs,
            lambda some: [timed_answer(differences, job) for job in some],
        )

    def state_dict(self) -> dict[str, Any]:
        """The chunk, on which the last bits depend."""
        return {"chunk": self.chunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk."""
        self.chunk = state["chunk"]


def jobs_of(count: int, offsets: int, chunk: int) -> list[Job]:
    """``count`` directions at each of so many offsets, ``chunk`` at a time."""
    return [Job(row, k, min(k + chunk, count)) for row in range(offsets) for k in range(0, count, chunk)]


def stacked_losses(objective: NetworkObjective, stacked: Parameters, batch: tuple[Any, ...], seed: int) -> Tensor:
    """Losses ``[P]`` (float64) at ``P`` stacked parameter sets; every set sees the same dropout masks."""
    x, y = split_batch(batch)
    copies = next(iter(stacked.values())).shape[0]
    buffers = {name: b.detach().expand(copies, *b.shape).clone() for name, b in objective.model.named_buffers()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return objective.loss_value(objective.call(parameters, x), y)

    with torch.no_grad(), seeded_scope(seed, device_of(stacked)):
        return torch.func.vmap(loss, randomness="same")({**stacked, **buffers})
