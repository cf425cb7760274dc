"""Integers that a GPU and its host both know: which channel, entry or tap each perturbation of a chunk moves.

They are chosen on the host, and rules ask for them there (which perturbations share a channel, whether two differences
sit together). Read from the GPU, each answer would wait for all the work that it still has to do.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_HOST: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""Tensor on a device -> its numbers, for as long as it lives."""


def placed(numbers: Int64[Tensor, "*any"], device: torch.device) -> Int64[Tensor, "*any"]:
    """A copy of the host's integers on a device; nobody waits for it."""
    if numbers.device == device:
        return numbers
    source = numbers.pin_memory() if device.type == "cuda" else numbers
    copy = source.to(device, non_blocking=True)
    if numbers.device.type == "cpu":
        _HOST[copy] = numbers
    return copy


def on_host(index: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """The numbers of an index on the host: those it was placed with, else read from the device."""
    if index.device.type == "cpu":
        return index
    known = _HOST.get(index)
    return index.cpu() if known is None else known


def is_known(index: Int64[Tensor, "*any"]) -> bool:
    """True if the host has the numbers without asking a device."""
    return index.device.type == "cpu" or index in _HOST


def mapped(index: Int64[Tensor, " n"], function: Callable[[Tensor], Tensor]) -> Int64[Tensor, " n"]:
    """A function of each number, known on the host where the numbers are."""
    return placed(function(on_host(index)), index.device) if is_known(index) else function(index)
