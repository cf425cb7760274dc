"""What all baselines share: counting, seeding, checking, and filling ``p.grad``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from deepzero.errors import CheckpointError, NonFiniteLossError
from deepzero.objective import Loss, NetworkObjective, device_of
from deepzero.randomness import derive_seed, seeded_scope


class Baseline(ABC):
    """A rule that turns a batch into an update direction, as a gradient source of the training loop.

    Args:
        model: a network of the kind that the rule is made for.
        loss: ``loss(output, target)``.
        seed: of everything that the rule draws; the draws of a step are a pure function of it and the step.

    Attributes:
        name: what :func:`deepzero.baselines.build` calls it.
        queries: forward passes of the network used so far.
        step: calls of :meth:`backward` so far.
        memory: what the rule has to remember from step to step, as JSON-able values; saved in checkpoints.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        self.objective = NetworkObjective(model, loss)
        self.seed = seed
        self.queries = 0
        self.step = 0
        self.epoch = 0
        self.memory: dict[str, Any] = {}

    @abstractmethod
    def directions(
        self, x: Float[Tensor, "b ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, what to put into ``p.grad`` by parameter name, and the forward passes that it took.

        Global generators are seeded for the step when it is called, and autograd is as the caller left it.
        """

    def backward(self, *batch: Any) -> Tensor:
        """Add the rule's direction to ``p.grad`` of every trainable parameter and return the loss.

        Raises:
            NonFiniteLossError: the loss or the direction is not finite; no ``.grad`` was changed.
        """
        x, y = batch
        parameters = {name: p for name, p in self.objective.model.named_parameters() if p.requires_grad}
        with seeded_scope(derive_seed(self.seed, self.name, self.step), device_of(parameters)):
            loss, directions, queries = self.directions(x, y)
        if not all(bool(result.isfinite().all()) for result in (loss, *directions.values())):
            raise NonFiniteLossError(f"the loss is {float(loss)} or the direction of {self.name} is not finite")
        for name, parameter in parameters.items():
            direction = directions[name]
            parameter.grad = direction if parameter.grad is None else parameter.grad.add_(direction)
        self.queries += queries
        self.step += 1
        return loss

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The counters and :attr:`memory`, as JSON-able values."""
        return {
            "source": self.name,
            "seed": self.seed,
            "step": self.step,
            "epoch": self.epoch,
            "queries": self.queries,
            "memory": self.memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        if (state.get("source"), state.get("seed")) != (self.name, self.seed):
            raise CheckpointError("the checkpoint was made by another method; resume with the same options")
        self.step, self.epoch, self.queries = state["step"], state["epoch"], state["queries"]
        self.memory = dict(state["memory"])
