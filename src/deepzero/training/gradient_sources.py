"""Where gradients come from: anything with the interface of an estimator; and the first-order one, for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from deepzero.coordinates import Coordinates, CoordinateSchedule, StepContext, as_schedule
from deepzero.errors import CheckpointError, NonFiniteLossError
from deepzero.objective import Loss, NetworkObjective, device_of
from deepzero.randomness import seeded_scope, step_seed


class GradientSource(Protocol):
    """Fills ``p.grad``. :class:`deepzero.Estimator` is one; :class:`Autograd` is another."""

    @property
    def queries(self) -> int:
        """Function values so far."""
        ...

    def backward(self, *batch: Any) -> Tensor:
        """Add a gradient to ``p.grad`` of every trainable parameter and return the loss."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on bitwise, as JSON-able values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        ...


@runtime_checkable
class HoldsTensors(Protocol):
    """A gradient source with state that is not JSON-able."""

    def tensors(self) -> dict[str, Tensor]:
        """By name, copied to the CPU."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned, after ``load_state_dict``."""
        ...


@runtime_checkable
class ChoosesCoordinates(Protocol):
    """A gradient source that may leave coordinates out."""

    def kept(self) -> dict[str, float]:
        """As :meth:`deepzero.Estimator.kept`."""
        ...


def kept_ratios(source: GradientSource) -> dict[str, float]:
    """What a record of an epoch says of the coordinates of its last step: ``kept/<parameter>``, a share in [0, 1].

    Empty for a source that does not choose coordinates, and for a step that left none out.
    """
    kept = source.kept() if isinstance(source, ChoosesCoordinates) else {}
    return {f"kept/{name}": share for name, share in kept.items()}


@contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """A block in which cuDNN takes only algorithms that give the same bits twice: gradients of weights else do not."""
    chosen = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = chosen


class Autograd:
    """The exact gradient on the chosen coordinates, by backpropagation: what zeroth-order training is compared with.

    Args:
        model: a network whose forward takes ``x``.
        loss: ``loss(output, target)``.
        sparsity: as for :func:`deepzero.CGE`; the gradient is 0 outside the chosen coordinates.
        seed: seeds dropout masks.

    Attributes:
        queries: function values used so far, one a step.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> model = torch.nn.Linear(3, 2)
        >>> fo = Autograd(model, loss=F.cross_entropy)
        >>> _ = fo.backward(torch.randn(8, 3), torch.randint(0, 2, (8,)))
        >>> model.weight.grad.shape, fo.queries
        (torch.Size([2, 3]), 1)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.objective = NetworkObjective(model, loss)
        self.schedule = as_schedule(sparsity)
        self.seed = seed
        self.queries = 0
        self.step = 0
        self.epoch = 0
        self._kept: dict[str, float] = {}

    def backward(self, *batch: Any) -> Tensor:
        """Add the exact gradient to ``p.grad``.

        Raises:
            NonFiniteLossError: the loss or its gradient is not finite; no ``.grad`` was changed.
        """
        chosen = self.schedule.coordinates(StepContext(self.step, self.epoch, self.objective, batch))
        parameters = {name: p for name, p in self.objective.model.named_parameters() if p.requires_grad}
        loss, gradients = self._differentiate(parameters, *batch)
        masks = chosen.masks({name: p.shape for name, p in parameters.items()})
        for name, parameter in parameters.items():
            gradient = gradients[name] * masks[name].to(parameter.device)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._kept = chosen.shares(parameters)
        self.queries += 1
        self.step += 1
        return loss

    def kept(self) -> dict[str, float]:
        """As :meth:`deepzero.Estimator.kept`."""
        return dict(self._kept)

    def _differentiate(
        self, parameters: Mapping[str, nn.Parameter], x: Any, y: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seed = step_seed(self.seed, self.step)
        with torch.enable_grad(), seeded_scope(seed, device_of(parameters)), repeatable_convolutions():
            value = self.objective.loss_value(self.objective.model(x), y)
            gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        loss = value.detach()
        if not all(bool(result.isfinite().all()) for result in (loss, *gradients)):
            raise NonFiniteLossError(f"the loss is {float(loss)} or its gradient is not finite")
        return loss, dict(zip(parameters, gradients, strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch to schedules that count epochs."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {
            "source": "autograd",
            "seed": self.seed,
            "step": self.step,
            "epoch": self.epoch,
            "queries": self.queries,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        if (state.get("source"), state.get("seed")) != ("autograd", self.seed):
            raise CheckpointError("the checkpoint was made by another estimator; resume with the same options")
        self.step, self.epoch, self.queries = state["step"], state["epoch"], state["queries"]
