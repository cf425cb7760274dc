"""Random directions on a network, many at once: ``torch.func.vmap`` over stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepzero import validation
from deepzero.errors import InvalidInputError
from deepzero.evaluators.base import Measurement, require_finite_base
from deepzero.objective import NetworkObjective, Objective, Parameters, device_of, split_batch
from deepzero.probes import Perturbations, RandomPerturbations
from deepzero.randomness import seeded_scope


class BatchedEvaluator:
    """Evaluates ``chunk`` random directions in one vectorized forward.

    Args:
        chunk: directions a forward; memory grows with it. The same chunk gives the same bits.
    """

    def __init__(self, *, chunk: int = 8) -> None:
        self.chunk = validation.count("chunk", chunk)

    def measure(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Measurement:
        """Loss differences of random directions on a network."""
        if not isinstance(objective, NetworkObjective) or not isinstance(perturbations, RandomPerturbations):
            raise InvalidInputError(
                "BatchedEvaluator evaluates random directions (RGE) on an nn.Module; "
                "use evaluator=dz.SequentialEvaluator() here"
            )
        parameters = objective.parameters()
        base = objective.evaluate(parameters, batch, seed=seed)
        require_finite_base(base.loss)
        rows = [
            self._losses(objective, parameters, batch, perturbations, offset, seed) - base.loss for offset in offsets
        ]
        return Measurement(base.loss, torch.stack(rows), base.buffers)

    def _losses(
        self,
        objective: NetworkObjective,
        parameters: Parameters,
        batch: tuple[Any, ...],
        perturbations: RandomPerturbations,
        offset: float,
        seed: int,
    ) -> Tensor:
        parts = []
        for start in range(0, len(perturbations), self.chunk):
            directions = perturbations.stack(start, min(start + self.chunk, len(perturbations)))
            moved = {name: parameters[name] + offset * directions[name] for name in parameters}
            parts.append(stacked_losses(objective, moved, batch, seed))
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """The chunk, on which the last bits depend."""
        return {"chunk": self.chunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the chunk."""
        self.chunk = state["chunk"]


def stacked_losses(objective: NetworkObjective, stacked: Parameters, batch: tuple[Any, ...], seed: int) -> Tensor:
    """Losses ``[P]`` (float64) at ``P`` stacked parameter sets; every set sees the same dropout masks."""
    x, y = split_batch(batch)
    copies = next(iter(stacked.values())).shape[0]
    buffers = {name: b.detach().expand(copies, *b.shape).clone() for name, b in objective.model.named_buffers()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return objective.loss_value(objective.call(parameters, x), y)

    with torch.no_grad(), seeded_scope(seed, device_of(stacked)):
        return torch.func.vmap(loss, randomness="same")({**stacked, **buffers})
