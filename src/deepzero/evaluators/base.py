"""The interface of an evaluator: it answers all queries of one step, whatever way is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from deepzero.errors import NonFiniteLossError
from deepzero.objective import Objective
from deepzero.probes import Perturbations


@dataclass(frozen=True)
class Measurement:
    """The answers to one step's queries.

    Attributes:
        loss: base loss :math:`\\ell(\\theta)`, 0-dim float64.
        differences: ``[len(offsets), K]`` float64, :math:`\\ell(\\theta + t_j p_k) - \\ell(\\theta)`.
        buffers: the objective's buffers as the base query leaves them.
    """

    loss: Tensor
    differences: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)


class Evaluator(Protocol):
    """Computes loss differences. All evaluators give the same numbers up to rounding."""

    def measure(
        self,
        objective: Objective,
        batch: tuple[Any, ...],
        perturbations: Perturbations,
        offsets: Sequence[float],
        seed: int,
    ) -> Measurement:
        """Loss differences of all perturbations at all offsets :math:`t_j`; nothing is mutated."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to give the same bits, as JSON-able values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        ...


def require_finite_base(loss: Tensor) -> None:
    """Raise unless the base loss is a finite number, before any perturbed query is made."""
    if not loss.isfinite():
        raise NonFiniteLossError(
            f"the loss at the current parameters is {float(loss)}: no gradient can be estimated there; "
            "lower the learning rate, check the inputs, or run `deepzero doctor`"
        )
