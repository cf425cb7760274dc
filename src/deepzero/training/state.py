"""From live objects to a checkpoint and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


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
    return {"state": {str(i): entry for i, entry in values.items()}, "param_groups": state["param_groups"]}


def restore_optimizer(optimizer: Optimizer, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_values` and :func:`optimizer_tensors` took."""
    state: dict[int, dict[str, Any]] = {int(i): dict(entry) for i, entry in values["state"].items()}
    for name, value in tensors.items():
        index, key = name.split("/", 1)
        state[int(index)][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is free of NaN and infinity."""
    return all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
