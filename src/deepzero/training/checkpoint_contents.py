"""The contents of a checkpoint: live objects as tensors and JSON-able values, and back, bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepzero.errors import InvalidInputError
from deepzero.training.batch_reader import Reader
from deepzero.training.callbacks import Callback
from deepzero.training.checkpoint import Checkpoint
from deepzero.training.gradient_sources import GradientSource, HoldsTensors


@dataclass
class Best:
    """The weights selected so far.

    Attributes:
        scores: of the validation, by name without ``validation_``.
        epoch: after which they were taken, from 0.
        tensors: parameters and buffers.
    """

    scores: dict[str, float]
    epoch: int
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Best | None:
        """The selected weights in a checkpoint; None if none had been selected."""
        values = decoded(checkpoint.state["best"])
        if values is None:
            return None
        best = cls(values["scores"], values["epoch"], selected("best", checkpoint.tensors))
        if type(best.epoch) is not int or not all(isinstance(score, int | float) for score in best.scores.values()):
            raise TypeError("the scores and the epoch of the selected weights must be numbers")
        return best

    def values(self) -> dict[str, Any]:
        """The part of a checkpoint's state that :meth:`of` reads; scores may be infinite."""
        found: dict[str, Any] = encoded({"scores": self.scores, "epoch": self.epoch})
        return found


@dataclass(kw_only=True)
class Position:
    """Progress of a run: what a checkpoint keeps beside weights, optimizer and gradient source.

    Attributes:
        step: optimizer steps made.
        epoch: epochs completed.
        index: batches read of the next one.
        seconds: time the run took in processes before this one.
        losses: of the steps since the last epoch's end.
        cost: function values that the last step took.
        looked: the step after which the validation data were looked at last.
        kept: shares of the coordinates of the last step, for the record of an epoch.
        inputs: shape and dtype of the network's input, without the batch; None where there is not one tensor.
        ended: why the run is over, if not because its epochs are.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    cost: int | None = None
    looked: int = -1
    kept: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, Any] | None = None
    ended: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Position:
        """The progress in a checkpoint.

        Raises:
            TypeError: it is none.
        """
        position = cls(**checkpoint.state["position"])
        counts = (position.step, position.epoch, position.index, position.looked, position.cost or 0)
        if not all(type(count) is int for count in (*counts, checkpoint.state["metrics_bytes"])):
            raise TypeError("steps, epochs and sizes must be whole numbers")
        if not all(map(is_number, (position.seconds, *position.losses, *position.kept.values()))):
            raise TypeError("losses, shares and seconds must be numbers")
        if position.step != checkpoint.step or min(position.step, position.epoch, position.index) < 0:
            raise ValueError(f"it says that {position.step} steps and {position.epoch} epochs were made")
        if not isinstance(position.inputs, dict | None) or not isinstance(position.ended, str | None):
            raise TypeError("the form of the inputs, or the end of the run, is of another kind")
        return position

    def end_step(self, *, batches: int, loss: float) -> None:
        """Count a step on that many batches."""
        self.step += 1
        self.index += batches
        self.losses.append(loss)

    def end_epoch(self, *, complete: bool) -> None:
        """Forget the losses of an epoch, and count it if all of its batches were read."""
        if complete:
            self.epoch, self.index = self.epoch + 1, 0
        self.losses = []


@dataclass(frozen=True, kw_only=True)
class LiveObjects:
    """The objects that change during a training, and whose state a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    source: GradientSource
    reader: Reader
    callbacks: Sequence[Callback]

    def values(self) -> dict[str, Any]:
        """The JSON-able part of their state."""
        return {
            "optimizer": optimizer_values(self.optimizer),
            "scheduler": None if self.scheduler is None else encoded(self.scheduler.state_dict()),
            "callbacks": [encoded(callback.state_dict()) for callback in self.callbacks],
            "reader": self.reader.values(),
            "source": self.source.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of their state, by name."""
        return {
            **prefixed("model", snapshot(self.model)),
            **prefixed("optimizer", optimizer_tensors(self.optimizer)),
            **prefixed("reader", self.reader.tensors()),
            **prefixed("source", self.source.tensors() if isinstance(self.source, HoldsTensors) else {}),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give them the state in a checkpoint."""
        values, tensors = checkpoint.state, checkpoint.tensors
        self.model.load_state_dict(selected("model", tensors))
        restore_optimizer(self.optimizer, values["optimizer"], selected("optimizer", tensors))
        self.source.load_state_dict(values["source"])
        if isinstance(self.source, HoldsTensors):
            self.source.load_tensors(selected("source", tensors))
        if self.scheduler is not None:
            state = decoded(values["scheduler"])
            require_alike(self.scheduler.state_dict(), state, "the scheduler")
            self.scheduler.load_state_dict(state)
        for callback, state in zip(self.callbacks, values["callbacks"], strict=True):
            callback.load_state_dict(decoded(state))
        self.reader.restore(values["reader"], selected("reader", tensors))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, on the CPU."""
    return {name: _copy(value) for name, value in model.state_dict().items()}


def parameter_shapes(model: nn.Module) -> list[tuple[str, list[int]]]:
    """Name and shape of every trainable parameter, in the model's own order, which files of weights do not keep."""
    return [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``name`` -> ``prefix/name``."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def selected(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`prefixed`, on the entries that have the prefix."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of any ``torch.optim`` optimizer (momentum buffers and the like), by ``index/key``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{key}": _copy(v) for i, entry in state.items() for key, v in entry.items() if isinstance(v, Tensor)}


def optimizer_values(optimizer: Optimizer) -> dict[str, Any]:
    """The rest of an optimizer's state, as JSON-able values."""
    state = optimizer.state_dict()
    values = {
        i: {key: v for key, v in entry.items() if not isinstance(v, Tensor)} for i, entry in state["state"].items()
    }
    return {
        "state": {str(i): encoded(entry) for i, entry in values.items()},
        "param_groups": encoded(state["param_groups"]),
    }


def restore_optimizer(optimizer: Optimizer, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_values` and :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Any]] = {int(i): dict(decoded(entry)) for i, entry in values["state"].items()}
    for name, value in tensors.items():
        index, key = name.split("/", 1)
        state[int(index)][key] = value
    groups = decoded(values["param_groups"])
    for own, group in zip(optimizer.state_dict()["param_groups"], groups, strict=True):
        require_alike(own, group, "the optimizer")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def require_fitting(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise :class:`ValueError` unless tensors have the names and shapes of a model's parameters and buffers."""
    there, own = ({name: value.shape for name, value in each.items()} for each in (tensors, model.state_dict()))
    if there != own:
        odd = sorted(name for name in there.keys() | own.keys() if there.get(name) != own.get(name))
        raise ValueError(f"the selected weights are of another model: {', '.join(odd[:3])}")


def is_number(value: Any) -> bool:
    """True for a number, but not for True and False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_alike(own: Any, there: Any, what: str) -> None:
    """Raise :class:`TypeError` if a value of a state is of another kind than the live object's, and neither is None.

    Example:
        >>> require_alike({"lr": 0.1}, {"lr": "fast"}, "the optimizer")
        Traceback (most recent call last):
        ...
        TypeError: lr of the optimizer is a float, not a str
    """
    for key in own.keys() & there.keys():
        before, after = own[key], there[key]
        if before is None or after is None or (is_number(before) and is_number(after)):
            continue
        if type(before) is not type(after):
            raise TypeError(f"{key} of {what} is a {type(before).__name__}, not a {type(after).__name__}")


KIND = "kind of value"
"""Key of an encoded value that JSON does not have."""


def encoded(value: Any) -> Any:  # noqa: PLR0911 - one kind a line
    """A state of optimizers and schedulers as JSON-able values; :func:`decoded` is the inverse.

    Beside JSON's own values there may be tuples, dicts with any keys, counters, numbers that are not finite, NumPy
    scalars (which become Python's) and tensors.

    Raises:
        InvalidInputError: there is something else in it.

    Example:
        >>> decoded(encoded({"betas": (0.9, 0.99), 3: float("inf")}))
        {'betas': (0.9, 0.99), 3: inf}
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {KIND: "float", "value": repr(value)}
        case np.generic():
            return encoded(value.item())
        case list():
            return [encoded(item) for item in value]
        case tuple():
            return {KIND: "tuple", "items": [encoded(item) for item in value]}
        case Tensor():
            return {KIND: "tensor", "dtype": str(value.dtype).removeprefix("torch."), "values": encoded(value.tolist())}
        case dict() if type(value) is dict and all(isinstance(key, str) and key != KIND for key in value):
            return {key: encoded(item) for key, item in value.items()}
        case dict():
            kind = "counter" if isinstance(value, Counter) else "dict"
            return {KIND: kind, "items": [[encoded(key), encoded(item)] for key, item in value.items()]}
    raise InvalidInputError(
        f"a {type(value).__name__} cannot be saved in a checkpoint: expected numbers, text, lists, tuples, dicts and "
        "tensors in the state of optimizers and schedulers"
    )


def decoded(value: Any) -> Any:  # noqa: PLR0911 - one kind a line
    """The inverse of :func:`encoded`."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(KIND):
        case "float":
            return float(value["value"])
        case "tuple":
            return tuple(decoded(item) for item in value["items"])
        case "tensor":
            return torch.tensor(decoded(value["values"]), dtype=getattr(torch, value["dtype"]))
        case "counter":
            return Counter({decoded(key): item for key, item in value["items"]})
        case "dict":
            return {decoded(key): decoded(item) for key, item in value["items"]}
    return {key: decoded(item) for key, item in value.items()}


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
