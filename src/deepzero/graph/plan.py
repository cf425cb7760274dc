"""The chunk plan: which perturbations are propagated together.

The plan depends on shapes, the byte target and the coordinates, never on the number of workers or on a clock: each
chunk is computed by one thread, so the gradient has the same bits on 1, 2 or 64 workers and in a second run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepzero.errors import BudgetError
from deepzero.graph.forward import Values
from deepzero.graph.program import Program
from deepzero.graph.propagate import loss_differences
from deepzero.probes import CoordinatePerturbations

MEBI = 1 << 20
MAX_CHUNK = 512
WORKSPACE = 3
"""Temporaries of a rule, in multiples of its result: the plain rules hold at most three at a time."""


@dataclass(frozen=True)
class Chunk:
    """Directions ``start`` to ``stop - 1`` of a step, all of one parameter."""

    parameter: str
    indices: Tensor
    start: int

    @property
    def stop(self) -> int:
        """One past the last direction."""
        return self.start + len(self.indices)


def query_bytes(program: Program, values: Values, parameter: str, offset: float) -> int:
    """Bytes that one perturbation of a parameter holds at its peak, read off a propagation of one coordinate."""
    peak = 0

    def meter(live: int, newest: int) -> None:
        nonlocal peak
        peak = max(peak, live + WORKSPACE * newest)

    cone = program.cones[parameter]
    loss_differences(cone, values, program.graph.output, torch.zeros(1, dtype=torch.int64), offset, meter)
    return max(peak, 1)


def chunk_sizes(
    bytes_per_query: Mapping[str, int], *, target: int, available: int, workers: int
) -> tuple[dict[str, int], int]:
    """Perturbations per chunk for each parameter, and how many workers fit.

    Args:
        bytes_per_query: peak bytes of one perturbation, by parameter.
        target: bytes that a chunk should take (what fits the cache).
        available: bytes left for all chunks in flight.
        workers: workers wanted.

    Raises:
        BudgetError: not even one perturbation at a time fits.
    """
    largest = max(bytes_per_query.values(), default=1)
    if largest > available:
        raise BudgetError(
            f"one query needs {largest / MEBI:.0f} MiB beyond the base forward, but the memory budget leaves "
            f"{max(available, 0) / MEBI:.0f} MiB; raise the budget or use smaller batches"
        )
    workers = max(1, min(workers, available // largest))
    cap = min(target, available // workers)
    return {name: max(1, min(MAX_CHUNK, cap // size)) for name, size in bytes_per_query.items()}, workers


def cut(perturbations: CoordinatePerturbations, sizes: Mapping[str, int]) -> list[Chunk]:
    """All directions of a step in chunks, parameter after parameter."""
    chunks: list[Chunk] = []
    for name, indices in perturbations.coordinates.items():
        first = perturbations.start(name)
        size = sizes[name]
        chunks += [Chunk(name, indices[b : b + size], first + b) for b in range(0, len(indices), size)]
    return chunks
