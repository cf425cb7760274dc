"""Sources of gradients: the interface of an estimator, a base for rules that look into a network, and autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
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
        """The state that a resumed run needs to go on bitwise, as JSON-able values."""
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
    """Shares in [0, 1] of the coordinates of the last step, as an epoch's record names them: ``kept/<parameter>``.

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


class GradientRule(ABC):
    """A gradient source that may look into the network: counters, seed, checks, and the filling of ``p.grad``.

    Args:
        model: a network of the kind that the rule is made for.
        loss: ``loss(output, target)``.
        seed: of everything that the rule draws; the draws of a step are a pure function of it and the step.

    Attributes:
        name: of the rule, in checkpoints and errors.
        objective: the network with its loss.
        queries: function values used so far.
        step: calls of :meth:`backward` so far.
        epoch: the one that was announced last.
        memory: JSON-able values that the rule remembers from step to step; None for a rule without a memory.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, *, loss: Loss, seed: int = 0) -> None:
        self.objective = NetworkObjective(model, loss)
        self.seed = seed
        self.queries = 0
        self.step = 0
        self.epoch = 0
        self.memory: dict[str, Any] | None = None

    @abstractmethod
    def gradients(self, x: Any, y: Any) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, the gradient of every trainable parameter by name, and the function values that they took."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.objective.model.named_parameters() if p.requires_grad}

    def backward(self, *batch: Any) -> Tensor:
        """Add the rule's gradient to ``p.grad`` of every trainable parameter and return the loss.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite; no ``.grad`` was changed.
        """
        x, y = batch
        loss, gradients, queries = self.gradients(x, y)
        if not all(bool(result.isfinite().all()) for result in (loss, *gradients.values())):
            raise NonFiniteLossError(f"the loss is {float(loss)} or the gradient of {self.name} is not finite")
        for name, parameter in self.parameters().items():
            gradient = gradients[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self.queries += queries
        self.step += 1
        return loss

    def set_epoch(self, epoch: int) -> None:
        """Announce the epoch."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The counters and the memory, as JSON-able values, and by which rule they were made."""
        return {
            "source": self.name,
            "seed": self.seed,
            "step": self.step,
            "epoch": self.epoch,
            "queries": self.queries,
            **({} if self.memory is None else {"memory": self.memory}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            CheckpointError: it is the state of another rule, or under another seed.
        """
        if (state.get("source"), state.get("seed")) != (self.name, self.seed):
            raise CheckpointError("the checkpoint was made by another method; resume with the same options")
        self.step, self.epoch, self.queries = state["step"], state["epoch"], state["queries"]
        self.memory = None if self.memory is None else dict(state["memory"])


class Autograd(GradientRule):
    """The exact gradient on the chosen coordinates, by backpropagation: what zeroth-order training is compared with.

    Args:
        model: a network whose forward takes ``x``.
        loss: ``loss(output, target)``.
        sparsity: as for :func:`deepzero.CGE`; the gradient is 0 outside the chosen coordinates.
        seed: of dropout masks.

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

    name = "autograd"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        sparsity: CoordinateSchedule | Coordinates | Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss=loss, seed=seed)
        self.schedule = as_schedule(sparsity)
        self._kept: dict[str, float] = {}

    def gradients(self, x: Any, y: Any) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]], int]:
        """The loss, the exact gradient, and one function value."""
        chosen = self.schedule.coordinates(StepContext(self.step, self.epoch, self.objective, (x, y)))
        parameters = self.parameters()
        with seeded_scope(step_seed(self.seed, self.step), device_of(parameters)), repeatable_convolutions():
            loss, gradients = exact_gradients(self.objective, parameters, x, y)
        masks = chosen.masks({name: p.shape for name, p in parameters.items()})
        self._kept = chosen.shares(parameters)
        return loss, {name: g * masks[name].to(g.device) for name, g in gradients.items()}, 1

    def kept(self) -> dict[str, float]:
        """As :meth:`deepzero.Estimator.kept`."""
        return dict(self._kept)


def exact_gradients(
    objective: NetworkObjective, parameters: Mapping[str, nn.Parameter], x: Any, y: Any
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, " ..."]]]:
    """The loss and its gradients by backpropagation, 0 where it does not depend on a parameter."""
    with torch.enable_grad():
        loss = objective.loss_value(objective.model(x), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return loss.detach(), dict(zip(parameters, gradients, strict=True))
