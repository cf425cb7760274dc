"""What is minimized, as something that can only be queried: a network with a loss, or a black box."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepzero import validation
from deepzero.arrays import Given, as_parameter, named
from deepzero.errors import InvalidInputError
from deepzero.randomness import seeded_scope

Loss = Callable[[Tensor, Tensor], Tensor]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """One query's answer: the loss (0-dim float64) and the buffers as the query leaves them."""

    loss: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A function of named parameters. Queries never change the objective."""

    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, live, by name."""
        ...

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One query: the loss at ``parameters`` on ``batch``; ``seed`` fixes whatever the objective draws."""
        ...

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Make ``buffers`` (as returned by the base query) the objective's own: once a step."""
        ...


class NetworkObjective:
    """A module, a loss and a batch: :math:`\\ell(\\theta) = \\mathrm{loss}(f_\\theta(x), y)`.

    Args:
        model: any ``nn.Module`` whose forward takes ``x``. Parameters with ``requires_grad=False`` are left alone.
            Its mode (train or eval) is respected: in train mode batch norm uses batch statistics.
        loss: takes ``(output, target)``, returns a scalar or a tensor of per-sample losses, which is averaged in
            float64. ``F.cross_entropy`` and ``F.mse_loss`` are averaged in float64 too.

    Example:
        >>> import torch, torch.nn.functional as F
        >>> objective = NetworkObjective(torch.nn.Linear(2, 1), F.mse_loss)
        >>> list(objective.parameters())
        ['weight', 'bias']
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(
                f"model must be a torch.nn.Module, got {type(model).__name__}; for a plain function of parameters "
                "use dz.BlackBox(fn, params)"
            )
        if not callable(loss):
            raise InvalidInputError(f"loss must be callable as loss(output, target), got {type(loss).__name__}")
        self.model = model
        self.loss = loss
        if not self.parameters():
            raise InvalidInputError("the model has no trainable parameter (requires_grad=True): nothing to estimate")

    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters by name; tied ones appear once, under their first name."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """Loss at ``parameters`` on ``batch = (x, y)``; dropout and the like draw from ``seed``."""
        x, y = split_batch(batch)
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        with torch.no_grad(), seeded_scope(seed, device_of(parameters)):
            output = self.call({**parameters, **buffers}, x)
            return Evaluation(self.loss_value(output, y), buffers)

    def call(self, values: Parameters, x: Any) -> Tensor:
        """The model's output with ``values`` in place of the tensors they name; the model is left as it is.

        Every place that holds a tied tensor is given the same value, each place once.
        """
        first = {id(t): name for name, t in (*self.model.named_parameters(), *self.model.named_buffers())}
        slots = {
            f"{prefix}.{local}" if prefix else local: first[id(t)]
            for prefix, module in self.model.named_modules()
            for local, t in (*module._parameters.items(), *module._buffers.items())
            if t is not None
        }
        given = {slot: values[name] for slot, name in slots.items() if name in values}
        output: Tensor = torch.func.functional_call(self.model, given, (x,), tie_weights=False)
        return output

    def loss_value(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss as a 0-dim float64 tensor."""
        try:
            return mean_loss(self.loss, output, target)
        except IndexError as error:
            raise InvalidInputError(
                f"the target does not fit the output of shape {tuple(output.shape)}: {error}; class labels must lie in "
                f"[0, {output.shape[1] if output.dim() > 1 else 'classes'})"
            ) from error

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """Copy ``buffers`` into the model (batch norm's running statistics, once a step)."""
        own = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in buffers.items():
                own[name].copy_(value)


@dataclass(frozen=True)
class BlackBoxFunction:
    """A black box's callable and how it wants to be called, without any values: what another process needs of it.

    Attributes:
        fn: the callable.
        arrays: names of the parameters that it takes as NumPy arrays; the others are tensors.
        batched: most parameter sets that it takes in one call, stacked; None if it takes one, not stacked.
    """

    fn: Callable[..., Any]
    arrays: frozenset[str]
    batched: int | None = None

    def losses(self, points: Sequence[Parameters], batch: tuple[Any, ...]) -> list[float]:
        """The loss at each of ``points``: one call of ``fn``, or a call for each where it is not batched."""
        if self.batched is not None:
            stacked = {name: torch.stack([point[name] for point in points]) for name in points[0]}
            return self._call(stacked, batch, len(points))
        copies = [{name: value.clone() for name, value in point.items()} for point in points]
        return [loss for copy in copies for loss in self._call(copy, batch, None)]

    def _call(self, values: Parameters, batch: tuple[Any, ...], stacked: int | None) -> list[float]:
        """One call on ``values``, which ``fn`` may write into."""
        arguments = {name: value.numpy() if name in self.arrays else value for name, value in values.items()}
        return _numbers(self.fn(arguments, *batch), stacked)


class BlackBox:
    """Any callable ``fn(params) -> float``; nothing inside needs torch.

    Args:
        fn: takes a dict of arrays shaped like ``params`` (NumPy arrays where ``params`` gave NumPy arrays, else
            tensors), followed by whatever ``zo.backward`` is given; returns the loss as a number.
        params: starting values by name, tensors or NumPy arrays of real numbers. They are updated in place by the
            optimizer; give ``box.optimizer_parameters()`` to it. Of a module the trainable parameters are meant, by
            name. A bare array or tensor is handed to ``fn`` as it is, ``fn(x)``; ``box.values["x"]`` holds it.
        batched: ``fn`` evaluates up to this many parameter sets in one call: its arrays have a leading dimension of
            1 to ``batched``, and it returns as many losses. What follows the arrays is not stacked. The loss of a set
            must not depend on the sets beside it.

    Example:
        >>> import numpy as np, torch, deepzero as dz
        >>> box = dz.BlackBox(lambda p: float(np.sum((p["w"] - 3.0) ** 2)), {"w": np.zeros(2)})
        >>> zo = dz.CGE(box, step_size=1e-3, stencil=dz.CENTRAL)
        >>> sgd = torch.optim.SGD(box.optimizer_parameters(), lr=0.5)
        >>> _ = zo.backward(); sgd.step()
        >>> box.values["w"].round(6)
        array([3., 3.])
        >>> many = dz.BlackBox(lambda p: ((p["w"] - 3.0) ** 2).sum(axis=1), {"w": np.zeros(2)}, batched=64)
        >>> float(dz.CGE(many).estimate().loss)
        18.0
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Given,
        *,
        batched: int | None = None,
    ) -> None:
        self.fn, self.values = named(fn, params)
        self.batched = None if batched is None else validation.count("batched", batched)
        self._tensors = {name: as_parameter(name, value) for name, value in self.values.items()}

    def function(self) -> BlackBoxFunction:
        """What a worker needs in order to query this black box, beside the values."""
        arrays = frozenset(name for name, value in self.values.items() if not isinstance(value, Tensor))
        return BlackBoxFunction(self.fn, arrays, self.batched)

    def parameters(self) -> dict[str, Tensor]:
        """The parameters as tensors that share memory with ``values``."""
        return {name: p.detach() for name, p in self._tensors.items()}

    def optimizer_parameters(self) -> list[nn.Parameter]:
        """What to hand to a ``torch.optim`` optimizer."""
        return list(self._tensors.values())

    def named_gradients_owner(self) -> dict[str, nn.Parameter]:
        """The parameters whose ``.grad`` an estimator fills."""
        return dict(self._tensors)

    def evaluate(self, parameters: Parameters, batch: tuple[Any, ...], *, seed: int) -> Evaluation:
        """One call of ``fn``; ``seed`` is not used: a black box draws what it draws."""
        (loss,) = self.function().losses([parameters], batch)
        return Evaluation(torch.tensor(loss, dtype=torch.float64))

    def commit(self, buffers: Mapping[str, Tensor]) -> None:
        """A black box has no buffers."""


def _numbers(answer: Any, stacked: int | None) -> list[float]:
    """What ``fn`` returned, as numbers: one, or ``stacked`` of them."""
    expected = "one number" if stacked is None else f"{stacked} losses, one for each of its stacked parameter sets"
    try:
        losses = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"fn must return {expected}, got {type(answer).__name__}") from error
    if losses.numel() != (stacked or 1):
        raise InvalidInputError(f"fn must return {expected}, got an array of shape {tuple(losses.shape)}")
    found: list[float] = losses.detach().reshape(-1).tolist()
    return found


def device_of(parameters: Parameters) -> torch.device:
    """The device of the first parameter."""
    return next(iter(parameters.values())).device


def split_batch(batch: tuple[Any, ...]) -> tuple[Any, Any]:
    """``(x, y)`` from the arguments of an estimate."""
    if len(batch) != 2:
        raise InvalidInputError(f"a network is estimated on two arguments, zo.backward(x, y); got {len(batch)}")
    return batch[0], batch[1]


def mean_loss(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """``loss(output, target)`` averaged in float64, as a 0-dim float64 tensor."""
    if loss is F.cross_entropy and not target.is_floating_point():
        losses = F.cross_entropy(output, target, reduction="none").double()
        return losses.sum() / (target != -100).sum()
    if loss is F.mse_loss:
        return F.mse_loss(output, target, reduction="none").double().mean()
    return loss(output, target).double().mean()
