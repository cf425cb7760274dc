"""The measured cost table: how long the queries of each parameter take on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from deepzero.stopwatch import median_seconds


@dataclass(frozen=True)
class ChunkCost:
    """Seconds of a chunk of P perturbations of one parameter, ``fixed + P * each``, with all workers busy.

    Attributes:
        fixed: seconds that a chunk takes whatever its size.
        each: seconds a perturbation.
        chunk: largest number of perturbations in a chunk.
        bytes: bytes that a perturbation holds at its peak.
    """

    fixed: float
    each: float
    chunk: int
    bytes: int

    def seconds(self, count: int) -> float:
        """Worker seconds for ``count`` perturbations."""
        return math.ceil(count / self.chunk) * self.fixed + count * self.each


@dataclass(frozen=True)
class CostTable:
    """Costs of one shape of batch on one machine.

    Attributes:
        base: seconds of the base forward, with what else happens once a step.
        workers: chunks in flight.
        parameters: cost of the queries of each parameter.
        base_bytes: bytes that the base forward holds.
    """

    base: float
    workers: int
    parameters: dict[str, ChunkCost]
    base_bytes: int

    def seconds_per_query(self) -> dict[str, float]:
        """Wall seconds of one query by parameter, in full chunks: what cost-aware ratios take."""
        return {name: c.seconds(c.chunk) / c.chunk / self.workers for name, c in self.parameters.items()}

    def seconds_per_step(self, counts: Mapping[str, int], *, nodes: int = 1) -> float:
        """Predicted wall seconds of an estimate with ``counts`` coordinates by parameter and a stencil of ``nodes``."""
        work = sum(self.parameters[name].seconds(count) for name, count in counts.items())
        return self.base + nodes * work / self.workers

    def state_dict(self) -> dict[str, Any]:
        """The table as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> CostTable:
        """The table that :meth:`state_dict` described."""
        return cls(**{**state, "parameters": {name: ChunkCost(**cost) for name, cost in state["parameters"].items()}})


def chunk_cost(run: Callable[[Tensor], None], indices: Tensor, chunk: int, nbytes: int, repeats: int) -> ChunkCost:
    """Fit :class:`ChunkCost` to the median times of chunks of one and of ``chunk`` perturbations."""
    small = median_seconds(lambda: run(indices[:1]), repeats)
    size = min(chunk, len(indices))
    if size == 1:
        return ChunkCost(0.0, small, chunk, nbytes)
    full = median_seconds(lambda: run(indices[:size]), repeats)
    each = max((full - small) / (size - 1), 0.0)
    return ChunkCost(max(full - size * each, 0.0), each, chunk, nbytes)
