"""From live objects to a checkpoint and back, bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepzero.errors import InvalidInputError


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
    optimizer.load_state_dict({"state": state, "param_groups": decoded(values["param_groups"])})


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


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is free of NaN and infinity."""
    return all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
