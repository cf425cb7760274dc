"""The oracle: one full query after another, in a loop that anyone can check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deepzero.evaluators.base import Measurement, require_finite_base
from deepzero.objective import Objective
from deepzero.probes import Perturbations


class SequentialEvaluator:
    """Answers every query by a full evaluation of the objective. Works for networks and any black box.

    Every query of a step draws the same random numbers (dropout masks) as the base query.
    """

    def measure(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Measurement:
        """Loss differences by ``1 + len(offsets) * len(perturbations)`` evaluations."""
        parameters = objective.parameters()
        base = objective.evaluate(parameters, batch, seed=seed)
        require_finite_base(base.loss)
        rows = [
            [
                objective.evaluate(perturbations.displace(parameters, k, offset), batch, seed=seed).loss - base.loss
                for k in range(len(perturbations))
            ]
            for offset in offsets
        ]
        differences = torch.tensor(rows, dtype=torch.float64, device=base.loss.device)
        return Measurement(base.loss, differences, base.buffers)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the oracle keeps no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""
