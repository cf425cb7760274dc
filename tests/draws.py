"""The random numbers that an estimate's base query draws, for whoever computes the same by other means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deepzero.randomness import derive_seed

aten = torch.ops.aten


class DrawnInOrder(TorchDispatchMode):
    """Random numbers as an estimate draws them: PyTorch's own, in the dtype of the estimate."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.rand.default:
            return func(*args, **{**kwargs, "dtype": self.dtype}).to(kwargs["dtype"])
        if func not in (aten.bernoulli_.float, aten.randn_like.default):
            return func(*args, **kwargs)
        drawn = func(torch.empty_like(args[0], dtype=self.dtype), *args[1:], **kwargs)
        return args[0].copy_(drawn) if func is aten.bernoulli_.float else drawn.to(args[0].dtype)


@contextmanager
def draws_of_step(step: int, dtype: torch.dtype, *, seed: int = 0) -> Iterator[None]:
    """Whatever the block draws, an estimator with this seed draws at this step; the global generator is as before."""
    with torch.random.fork_rng(devices=[]), DrawnInOrder(dtype):
        torch.default_generator.manual_seed(derive_seed(seed, "objective", step))  # for a CPU alone: thousands of times
        yield
