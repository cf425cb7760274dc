"""How long a call takes, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Wall seconds until all that a call has asked of the device is done."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
