"""The chunk plan: which perturbations are propagated together.

The plan depends on shapes, the byte target and the coordinates, never on the number of workers or on a clock: each
chunk is computed by one thread, so the gradient has the same bits on 1, 2 or 64 workers and in a second run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from deepzero.errors import BudgetError
from deepzero.graph.forward import Values, held_bytes
from deepzero.graph.program import Program
from deepzero.graph.propagate import Meter, loss_differences
from deepzero.probes import CoordinatePerturbations

MEBI = 1 << 20
MAX_CHUNK = 512
WORKSPACE = 12
"""Temporaries of a rule, in multiples of its result: gelu and the fallback, which work in float64, hold the most."""

RECOMPUTED = 4
"""What a query that runs operations again holds, as a divisor of what the base forward keeps."""

ALLOCATOR = 1.8
"""Memory that the process takes, in multiples of live tensors: what the C allocator keeps in its arenas for reuse."""


@dataclass(frozen=True)
class Chunk:
    """Directions ``start`` to ``stop - 1`` of a step, all of one parameter."""

    parameter: str
    indices: Int64[Tensor, " p"]
    start: int

    @property
    def stop(self) -> int:
        """One past the last direction."""
        return self.start + len(self.indices)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step takes.

    Attributes:
        held: the base forward, with all that rules derive from it.
        queries: one perturbation at its peak, by parameter.
    """

    held: int
    queries: dict[str, int]


def footprint(program: Program, values: Values, offset: float) -> Footprint:
    """Read off a propagation of one coordinate of every parameter; depends on shapes only."""
    queries = {n: _query_bytes(program, values, n, offset) for n, cone in program.cones.items() if not cone.reason}
    held = held_bytes(values)
    return Footprint(held, {**queries, **dict.fromkeys(program.recomputed, max(1, held // RECOMPUTED))})


def joint_footprint(values: Values, one: Callable[[Meter], Tensor], name: str) -> Footprint:
    """The same for directions in which all parameters move, from a propagation of one of them."""
    peak = 1

    def meter(live: int, newest: int) -> None:
        nonlocal peak
        peak = max(peak, live + WORKSPACE * newest)

    one(meter)
    return Footprint(held_bytes(values), {name: peak})


def _query_bytes(program: Program, values: Values, parameter: str, offset: float) -> int:
    peak = 0

    def meter(live: int, newest: int) -> None:
        nonlocal peak
        peak = max(peak, live + WORKSPACE * newest)

    _propagate_one(program, values, parameter, offset, meter)
    return max(peak, 1)


def work(program: Program, values: Values, offset: float) -> dict[str, int]:
    """Bytes of differences that a perturbation writes on its way to the loss, by parameter; depends on shapes only."""
    held = held_bytes(values)
    return {
        name: held if cone.reason else _written_bytes(program, values, name, offset)
        for name, cone in program.cones.items()
    }


def _written_bytes(program: Program, values: Values, parameter: str, offset: float) -> int:
    written = 0

    def meter(_: int, newest: int) -> None:
        nonlocal written
        written += newest

    _propagate_one(program, values, parameter, offset, meter)
    return max(written, 1)


def _propagate_one(program: Program, values: Values, parameter: str, offset: float, meter: Meter) -> None:
    first = torch.zeros(1, dtype=torch.int64)
    loss_differences(program.cones[parameter], values, program.graph.output, first, offset, meter)


def chunk_sizes(foot: Footprint, *, target: int, budget: int, overhead: float = 1.0) -> dict[str, int]:
    """Perturbations per chunk for each parameter.

    Args:
        foot: bytes that a step takes.
        target: bytes that a chunk should take (what fits the cache).
        budget: bytes for everything.
        overhead: memory that the process takes, in multiples of live tensors.

    Raises:
        BudgetError: not even one perturbation at a time fits.
    """
    largest = max(foot.queries.values(), default=1)
    live = int(budget / overhead)
    if foot.held + largest > live:
        needed = math.ceil((foot.held + largest) * overhead)
        raise BudgetError(
            f"an estimate needs {needed / MEBI:.0f} MiB (the base forward holds {foot.held / MEBI:.0f} MiB of tensors, "
            f"one query {largest / MEBI:.0f}), more than the memory budget of {budget / MEBI:.0f} MiB; "
            f"give at least PropagationEvaluator(memory_budget={needed}) or use smaller batches"
        )
    cap = min(target, live - foot.held)
    return {name: max(1, min(MAX_CHUNK, cap // size)) for name, size in foot.queries.items()}


def workers_that_fit(
    foot: Footprint, sizes: Mapping[str, int], *, budget: int, wanted: int, overhead: float = 1.0
) -> int:
    """How many chunks may be in flight; never changes what a chunk holds."""
    return max(1, min(wanted, (int(budget / overhead) - foot.held) // _largest_chunk(foot, sizes)))


def in_flight(foot: Footprint, sizes: Mapping[str, int], workers: int) -> int:
    """Bytes of live tensors while ``workers`` chunks are in flight."""
    return foot.held + workers * _largest_chunk(foot, sizes)


def _largest_chunk(foot: Footprint, sizes: Mapping[str, int]) -> int:
    return max((size * foot.queries[name] for name, size in sizes.items()), default=1)


def cut(perturbations: CoordinatePerturbations, sizes: Mapping[str, int]) -> list[Chunk]:
    """All directions of a step in chunks, parameter after parameter."""
    chunks: list[Chunk] = []
    for name, indices in perturbations.coordinates.items():
        first = perturbations.start(name)
        size = sizes[name]
        chunks += [Chunk(name, indices[b : b + size], first + b) for b in range(0, len(indices), size)]
    return chunks
