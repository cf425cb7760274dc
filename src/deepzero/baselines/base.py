"""The base of all baselines: a rule whose draws are seeded by its name and the step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from deepzero.objective import Loss, device_of
from deepzero.randomness import derive_seed, seeded_scope
from deepzero.training.gradient_sources import GradientRule


class Baseline(GradientRule):
    """A rule that turns a batch into an update direction, as a gradient source of the training loop.

    Args:
        model: a network of the kind that the rule is made for.
        loss: ``loss(output, target)``.
        seed: of everything that the rule draws; the draws of a step are a pure function of it and the step.

    Attributes:
        name: its name for :func:`deepzero.baselines.build`.
        queries: forward passes of the network used so far.
        step: calls of :meth:`backward` so far.
        memory: JSON-able values that the rule remembers from step to step; saved in checkpoints.
    """

    memory: dict[str, Any]

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.memory = {}

    @abstractmethod
    def directions(
        self, x: Float[Tensor, "b ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, the direction to add to ``p.grad`` by parameter name, and the forward passes that it took.

        Global generators are seeded for the step when it is called, and autograd is as the caller left it.
        """

    def gradients(self, x: Any, y: Any) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The same as :meth:`directions`, which runs with generators seeded for the step."""
        with seeded_scope(derive_seed(self.seed, self.name, self.step), device_of(self.parameters())):
            return self.directions(x, y)
